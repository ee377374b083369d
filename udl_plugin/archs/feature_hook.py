"""Finds the layer whose input the variance head takes, and captures that input in a forward pass."""
from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import nn

from udl_plugin.archs.build import ModuleCall, trace_modules
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
    calls, lq, sr = trace_modules(net)
    usable = {call.name: call.input for call in calls if call.takes_map and sr[2] % call.input[2] == 0}
    chosen = _find_upsampler(calls) if name is None else name
    if chosen is None or chosen not in usable:
        problem = 'cannot be found automatically; set it to the name of the module whose input they are.' \
            if name is None else f"there is no '{name}'{did_you_mean(name, usable)}, or no feature map enters it."
        candidates = ', '.join(f'{one} ({shape[1]})' for one, shape in list(usable.items())[-MAX_SHOWN:])
        raise UserError(f'{type(net).__name__}: features: {problem} The last modules to run, with the channels of '
                        f'their input: {candidates}.')
    _, num_feat, height, _ = usable[chosen]
    return FeatureLayer(chosen, sum(call.name == chosen for call in calls), num_feat, sr[2] // height, sr[1],
                        sr[2] // lq[2])


def _find_upsampler(calls: list[ModuleCall]) -> str | None:
    """Returns the name of the first module that enlarges, or None.

    Of a convolution and a pixel shuffle it is the convolution; where nothing enlarges, the last convolution.
    """
    layers = [call for call in calls if call.is_leaf and call.takes_map and call.returns_map]
    while layers and next(layers[0].module.parameters(), None) is None:  # it may enlarge the image itself
        layers = layers[1:]
    height = layers[0].input[2] if layers else 0
    for number, layer in enumerate(layers):
        if layer.input[2] > height:  # enlarged by a function, not by a module
            return layer.name
        if layer.output[2] > height:
            before = layers[number - 1]
            is_shuffled = isinstance(layer.module, nn.PixelShuffle) and before.output == layer.input
            return before.name if is_shuffled else layer.name
    convolutions = [layer.name for layer in layers if isinstance(layer.module, nn.Conv2d)]
    return convolutions[-1] if convolutions else None


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
