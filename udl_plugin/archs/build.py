"""From a config to a network: class lookup, construction, and a probe run that reports shapes and module calls."""
from __future__ import annotations

import contextlib
import inspect
import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from udl_plugin.archs.outputs import get_sr_image
from udl_plugin.errors import UserError, describe_exception, lookup_class

# heights of the probe image, tried in turn: some networks need more than a few pixels, SwinIR multiples of its window
PROBE_HEIGHTS = (8, 16, 56, 64, 128)
PROBE_ASPECT = 3  # its width over its height: tells maps from tokens (N, H, W, C) and padded maps


# ---- config -> network

def get_network_class(name: str, where: str = '') -> Any:
    """Returns the class registered as `name` in BasicSR's ARCH_REGISTRY. `where` begins the error message.

    Raises:
        UserError: no such class; suggests the nearest name.
    """
    return lookup_class(ARCH_REGISTRY, name, f'{where}type: ')


def with_defaults(network_g: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of a network with the defaults of the options that it leaves out.

    Raises:
        UserError: no such type.
    """
    parameters = inspect.signature(get_network_class(network_g['type'])).parameters
    return {**{name: parameter.default for name, parameter in parameters.items()
               if parameter.default is not parameter.empty}, **network_g}


def build_network(network_g: Mapping[str, Any]) -> nn.Module:
    """Builds the network of a config, like BasicSR's `build_network` but without logging or changing the config.

    Raises:
        UserError: no such type, or the class does not accept these options.
    """
    cls = get_network_class(network_g['type'])
    if network_g['type'] == 'EDSR':  # the class also accepts these, and fails when it is run
        for key in ('num_in_ch', 'num_out_ch'):
            if type(network_g.get(key)) is int and network_g[key] != 3:
                raise UserError(f"{key}: {network_g[key]}: BasicSR's EDSR subtracts the mean colour of RGB images and "
                                'requires 3. For images of one channel, use DPDNN.')
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'torch.meshgrid')  # from BasicSR's SwinIR
            return cls(**{key: value for key, value in network_g.items() if key != 'type'})
    except UserError:
        raise
    except Exception as err:  # a string for a number, a negative size: each network fails in its own way
        raise UserError(f'type: {network_g["type"]}: cannot be built with these options '
                        f'({describe_exception(err)}): {dict(network_g)}.') from err


def build_backbone(backbone: Any) -> nn.Module:
    """Builds the base network under the key `backbone` of a `WithVariance` or `TwoStep`.

    Raises:
        UserError: not a config with a `type`, or a network that already has a variance head.
    """
    if not isinstance(backbone, dict) or 'type' not in backbone:
        raise UserError('backbone: expected a config such as {type: EDSR, num_in_ch: 3, num_out_ch: 3}, '
                        f'got {backbone!r}.')
    if hasattr(get_network_class(backbone['type'], 'backbone: '), 'trains_log_var'):
        raise UserError(f'backbone: type: {backbone["type"]} already has a variance head; use a base network.')
    return build_network(backbone)


# ---- probe

@torch.no_grad()
def probe_shapes(net: nn.Module, min_height: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Runs a network on a small black image, wider than high, of a channel count and size that it accepts.

    Args:
        net: A network; see `get_sr_image`.
        min_height: Of the image.

    Returns:
        The shapes of input and output, `(1, C, H, W)` each.

    Raises:
        UserError: no image works, or the output is not an image enlarged by an integer.
    """
    was_training, first_error = net.training, None
    device = next(itertools.chain(net.parameters(), net.buffers()), torch.zeros(0)).device
    net.eval()
    try:
        heights = [height for height in PROBE_HEIGHTS if height >= min_height]
        for channels, height in itertools.product((3, 1), heights):
            lq = torch.zeros(1, channels, height, PROBE_ASPECT * height, device=device)
            try:
                output = tuple(get_sr_image(net(lq)).shape)
                if not _is_map(output) or output[2] % height:
                    raise UserError(f'the network returns a result of shape {output} for an image of shape '
                                    f'{tuple(lq.shape)}, not an image enlarged by an integer factor.')
                return tuple(lq.shape), output
            except Exception as err:  # an unknown network: any error may come from an unsuitable size
                first_error = first_error or err
    finally:
        net.train(was_training)
    if isinstance(first_error, UserError):
        raise UserError(f'{type(net).__name__}: {first_error}') from first_error
    assert first_error is not None  # otherwise it has returned
    raise UserError(f'{type(net).__name__} cannot be run on a small image of 3 channels or 1 '
                    f'({describe_exception(first_error)}).') from first_error


@dataclass
class ModuleCall:
    """One call of a submodule during a probe run.

    Attributes:
        name: As in `net.named_modules()`.
        module: The submodule.
        input, output: Shapes of its first argument and its result; `()` where these are not tensors.
        is_leaf: It called no other submodule, parametrizations such as weight norm aside.
    """

    name: str
    module: nn.Module
    input: tuple[int, ...]
    output: tuple[int, ...] = ()
    is_leaf: bool = True

    @property
    def takes_map(self) -> bool:
        """Whether the input is a feature map or an image, `(N, C, H, W)`."""
        return _is_map(self.input)

    @property
    def returns_map(self) -> bool:
        """Whether the output is a feature map or an image, `(N, C, H, W)`."""
        return _is_map(self.output)


def trace_modules(net: nn.Module,
                  min_height: int = 0) -> tuple[list[ModuleCall], tuple[int, ...], tuple[int, ...]]:
    """Runs `net` as `probe_shapes` does and records the calls of its submodules.

    Returns:
        The calls, in the order in which they started; the shapes of the input and the output image.

    Raises:
        UserError: see `probe_shapes`.
    """
    calls: list[ModuleCall] = []
    open_calls: list[ModuleCall] = []

    def before_net(*_: Any) -> None:  # `probe_shapes` may have failed with another size before
        calls.clear()
        open_calls.clear()

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: tuple) -> None:
            if open_calls and 'parametrizations' not in name:
                open_calls[-1].is_leaf = False
            open_calls.append(ModuleCall(name, module, _shape_of(args[0] if args else None)))
            calls.append(open_calls[-1])
        return hook

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        open_calls.pop().output = _shape_of(output)

    with contextlib.ExitStack() as hooks:
        hooks.enter_context(net.register_forward_pre_hook(before_net))
        for name, module in net.named_modules():
            if name:
                hooks.enter_context(module.register_forward_pre_hook(before(name)))
                hooks.enter_context(module.register_forward_hook(after))
        lq, sr = probe_shapes(net, min_height)
    return calls, lq, sr


def _shape_of(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if torch.is_tensor(value) else ()


def _is_map(shape: tuple[int, ...]) -> bool:
    """Whether it has the aspect ratio of the probe image; attention has other tensors of four dimensions."""
    return len(shape) == 4 and shape[3] == PROBE_ASPECT * shape[2] > 0
