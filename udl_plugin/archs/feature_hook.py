"""Finds the layer whose input the variance head takes, and captures that input in a forward pass."""
from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

import torch
from torch import nn

from udl_plugin.archs.build import PROBE_HEIGHTS, ModuleCall, trace_modules
from udl_plugin.errors import UserError, did_you_mean

MAX_SHOWN = 12  # candidates in an error


# ---- find the features

class FeatureLayer(NamedTuple):
    """The module whose input the variance head takes, and what the head and its user have to know.

    Attributes:
        module: Name of the module.
        calls: How often it is called in one forward pass.
        num_feat: Channels of its input.
        upscale: Size of the SR image over the size of its input.
        num_out_ch: Channels of the SR image.
        scale: Size of the SR image over the size of the LR image.
    """

    module: str
    calls: int
    num_feat: int
    upscale: int
    num_out_ch: int
    scale: int


def find_feature_layer(net: nn.Module, name: str | None = None) -> FeatureLayer:
    """Finds the features that enter the upsampler of `net`, by running it on a small black image.

    Args:
        net: A base network: `(N, C, H, W)` to the SR image, of 3 channels or 1.
        name: The module whose input to use; None finds it, see `WithVariance`.

    Raises:
        UserError: `net` cannot be run, has no such module, or no feature map enters that module.
    """
    for height in PROBE_HEIGHTS:
        calls, lq, sr = trace_modules(net, height)
        usable = {call.name: call.input for call in calls if call.takes_map and sr[2] % call.input[2] == 0}
        if usable:  # otherwise the network may pad an image of this size
            break
    chosen = _find_upsampler(calls, lq[1]) if name is None else name
    if chosen is None or chosen not in usable:
        problem = 'cannot be found automatically; set it to the name of the module whose input they are.' \
            if name is None else f"there is no '{name}'{did_you_mean(name, usable)}, or no feature map enters it."
        candidates = ', '.join(f'{one} ({shape[1]})' for one, shape in list(usable.items())[-MAX_SHOWN:])
        raise UserError(f'{type(net).__name__}: features: {problem} The last modules to run, with the channels of '
                        f'their input: {candidates}.')
    _, num_feat, height, _ = usable[chosen]
    return FeatureLayer(chosen, sum(call.name == chosen for call in calls), num_feat, sr[2] // height, sr[1],
                        sr[2] // lq[2])


def _find_upsampler(calls: list[ModuleCall], channels: int) -> str | None:
    """Returns the name of the first module that enlarges features, or None.

    Of a convolution and a pixel shuffle it is the convolution; where no module enlarges, the last convolution.

    Args:
        channels: Of the image. Layers whose input has no more work on the image itself, such as those of a global skip,
            unless there are no others.
    """
    leaves = [call for call in calls if call.is_leaf]
    weighted = [call for call in leaves if _has_weights(call)]
    if not any(call.takes_map and call.input[1] > channels for call in weighted):
        channels = 0
    layers = [call for call in leaves if call.takes_map and call.returns_map
              and max(call.input[1], call.output[1]) > channels]
    while layers and not _has_weights(layers[0]):  # it may scale the image before the network
        layers = layers[1:]
    height = layers[0].input[2] if layers else 0
    for number, layer in enumerate(layers):
        if max(layer.input[2], layer.output[2]) > height:
            first = _find_shuffled(layers[:number], layer) or layer
            if first.input[1] > channels:
                return first.name
    # upsampled by a function: its input comes from the last layer, but not where that one returns tokens
    last = [call for call in weighted if not call.takes_map or call.input[1] > channels][-1:]
    return last[0].name if last and last[0] in layers else None


def _find_shuffled(before: list[ModuleCall], layer: ModuleCall) -> ModuleCall | None:
    """Returns the convolution whose output is shuffled by `layer`, or by a function between it and `layer`, or None.

    Activations and norms may follow it.
    """
    if not before:
        return None
    size = math.prod(before[-1].output)
    is_module = not _has_weights(layer) and layer.output[1] < layer.input[1] and size == math.prod(layer.input)
    is_function = layer.input[2] > before[-1].output[2] and size == math.prod(layer.input)
    if is_module or is_function:
        for call in reversed(before):
            if math.prod(call.output) != size:
                return None
            if _has_weights(call):
                return call
    return None


def _has_weights(call: ModuleCall) -> bool:
    """Whether it is a convolution or the like. Activations and norms have at most one parameter for each channel."""
    return any(parameter.ndim > 1 for parameter in call.module.parameters())


# ---- capture the features

# The active capture of this thread, under `capture`: nn.DataParallel runs replicas that share one hook in many threads.
_active = threading.local()


class _StopForward(Exception):
    """Ends a forward pass of the backbone early."""


class FeatureCapture:
    """Context in which the backbone runs; `features` is the input of the module with `capture_hook` at its last call.

    Args:
        stop_after: Ends the block, without an error, at this call of the module; None runs all of it.
    """

    features: torch.Tensor

    def __init__(self, stop_after: int | None = None):
        self.stop_after = stop_after
        self.calls = 0

    def __enter__(self) -> FeatureCapture:
        _active.capture = self
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        _active.capture = None
        return kind is _StopForward

    def add(self, features: torch.Tensor) -> None:
        """Records one call of the module."""
        self.features = features
        self.calls += 1
        if self.calls == self.stop_after:
            raise _StopForward


def capture_hook(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook: passes the input of its module to this thread's `FeatureCapture`, if there is one.

    A function, not a closure, so that networks with it can be copied and pickled.
    """
    capture = getattr(_active, 'capture', None)
    if capture is not None:
        capture.add(args[0])
