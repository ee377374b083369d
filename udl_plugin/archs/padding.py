"""Pads images to the multiple of height and width that a network requires."""
from torch.nn import functional as F

from udl_plugin.archs.wrapping import base_config


def required_multiple(network_g):
    """Of which number the plain network of `network_g` wants height and width of its input to be multiples."""
    plain = base_config(network_g)
    if plain['type'] == 'RRDBNet':
        return {1: 4, 2: 2}.get(plain.get('scale', 4), 1)
    return plain.get('window_size', 7) if plain['type'] == 'SwinIR' else 1


def pad_to_multiple(lq, multiple):
    """`lq` `(N, C, H, W)` with its last row and column repeated until H and W are multiples."""
    height, width = lq.shape[2:]
    return F.pad(lq, (0, -width % multiple, 0, -height % multiple), mode='replicate')
