"""Pads images to the multiple of height and width that a network requires."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from udl_plugin.archs.build import get_network_class
from udl_plugin.archs.wrapping import base_config

# networks of BasicSR that require a multiple, by class name
BASICSR_MULTIPLES = {
    'RRDBNet': lambda options: {1: 4, 2: 2}.get(options.get('scale', 4), 1),  # starts with a pixel unshuffle
    'SwinIR': lambda options: options.get('window_size', 7),
}


def get_required_multiple(network_g: Mapping[str, Any]) -> int:
    """Returns the number of which the network's input height and width must be multiples; 1 where any size works.

    A network class declares its own as the class attribute `required_multiple`.
    """
    config = base_config(network_g)
    cls = get_network_class(config['type'])
    if hasattr(cls, 'required_multiple'):
        return cls.required_multiple
    rule = BASICSR_MULTIPLES.get(cls.__name__)
    return rule(config) if rule else 1


def pad_to_multiple(lq: Tensor, multiple: int) -> Tensor:
    """Pads `lq` `(N, C, H, W)` on the right and at the bottom, repeating the border, to multiples of H and W."""
    height, width = lq.shape[2:]
    return F.pad(lq, (0, -width % multiple, 0, -height % multiple), mode='replicate')
