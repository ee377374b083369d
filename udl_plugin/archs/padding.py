"""Pads images to the multiple of height and width that a network requires."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from udl_plugin.archs.build import build_network, get_network_class, probe_shapes
from udl_plugin.archs.outputs import get_sr_image
from udl_plugin.archs.wrapping import base_config
from udl_plugin.errors import UserError

# multiples that networks require, by class name; those that are not listed are tried
KNOWN_MULTIPLES = {
    **dict.fromkeys(('DPDNN', 'EDSR', 'RCAN', 'MSRResNet', 'SRVGGNetCompact', 'ECBSR'), lambda options: 1),
    'RRDBNet': lambda options: {1: 4, 2: 2}.get(options.get('scale', 4), 1),  # starts with a pixel unshuffle
    'SwinIR': lambda options: options.get('window_size', 7),
}
TRIED_MULTIPLES = (1, 2, 4, 7, 8, 16, 32, 64)
PRIMES = (3, 5, 11, 13, 17, 19)  # without 2 and 7: a multiple of m times one of them is of no larger multiple
MIN_TRIED = 16  # pixels: smaller images may be too small for the network's padding

_found: dict[tuple[type, str], int] = {}  # in this process, by class and options


def get_required_multiple(network_g: Mapping[str, Any]) -> int:
    """Returns the number of which the network's input height and width must be multiples; 1 where any size works.

    A network class declares its own as the class attribute `required_multiple`, an integer or a function of the
    options. For other networks that are not in `KNOWN_MULTIPLES`, the first of `TRIED_MULTIPLES` that works.

    Raises:
        UserError: what the class declares is no positive integer, or none of `TRIED_MULTIPLES` works.
    """
    config = base_config(network_g)
    cls = get_network_class(config['type'])
    declared = get_declared(config, 'required_multiple', 1)
    if declared is not None:
        return declared
    if cls.__name__ in KNOWN_MULTIPLES:
        return KNOWN_MULTIPLES[cls.__name__](config)
    key = cls, repr(config)
    if key not in _found:
        with torch.random.fork_rng(devices=[]):  # a training's random numbers stay as they are
            _found[key] = _find_multiple(build_network(config))
    return _found[key]


def get_declared(network_g: Mapping[str, Any], name: str, least: int) -> int | None:
    """Returns an integer that a network's class declares as an attribute, or as a function of the options.

    Args:
        network_g: Config of the network.
        name: Of the attribute.
        least: Its smallest value.

    Returns:
        None if the class declares none.

    Raises:
        UserError: it is no integer of at least `least`.
    """
    config = base_config(network_g)
    declared = getattr(get_network_class(config['type']), name, None)
    value = declared(config) if callable(declared) else declared
    if value is not None and (type(value) is not int or value < least):
        raise UserError(f'type: {config["type"]}: its class attribute {name} is {value!r}; expected an integer of at '
                        f'least {least}.')
    return value


@torch.no_grad()
def _find_multiple(net: nn.Module) -> int:
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')  # some networks run on GPUs only
    net.eval().to(device)
    lq_shape, sr_shape = probe_shapes(net)
    scale = sr_shape[2] // lq_shape[2]
    for multiple in TRIED_MULTIPLES:
        height, width = [multiple * prime for prime in PRIMES if multiple * prime >= MIN_TRIED][:2]
        try:
            sr = get_sr_image(net(torch.zeros(1, lq_shape[1], height, width, device=device)))
        except Exception:  # an unknown network: any error may come from the size
            continue
        if sr.shape[2:] == (scale * height, scale * width):
            return multiple
    raise UserError(f'type: {type(net).__name__}: there is no multiple among {", ".join(map(str, TRIED_MULTIPLES))} '
                    'whose sizes it accepts; declare the one of height and width that it requires as a class '
                    'attribute: required_multiple = 24.')


def pad_to_multiple(lq: Tensor, multiple: int) -> Tensor:
    """Pads `lq` `(N, C, H, W)` on the right and at the bottom, repeating the border, to multiples of H and W."""
    height, width = lq.shape[2:]
    return F.pad(lq, (0, -width % multiple, 0, -height % multiple), mode='replicate')
