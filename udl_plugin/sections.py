"""Sections `network_g` of a yml: the plain network in that of either step, and back; what it wants of an image.

Needs no network to be there.
"""
from torch.nn import functional as F

OWN_STEPS = ('EDSR', 'DPDNN')  # networks whose steps have names of their own, such as EDSRVar and EDSRTwo


def plain_section(network_g):
    """`network_g` of the plain network in a network of either step."""
    if 'backbone' in network_g:
        return network_g['backbone']
    for name in OWN_STEPS:
        if network_g.get('type') in (f'{name}Var', f'{name}Two'):
            return {**{key: value for key, value in network_g.items() if key != 'features'}, 'type': name}
    return network_g


def size_multiple(network_g):
    """Of which number the plain network of `network_g` wants height and width of its input to be multiples."""
    plain = plain_section(network_g)
    if plain['type'] == 'RRDBNet':
        return {1: 4, 2: 2}.get(plain.get('scale', 4), 1)
    return plain.get('window_size', 7) if plain['type'] == 'SwinIR' else 1


def fill_up(lq, multiple):
    """`lq` `(N, C, H, W)` with its last row and column repeated until H and W are multiples."""
    height, width = lq.shape[2:]
    return F.pad(lq, (0, -width % multiple, 0, -height % multiple), mode='replicate')


def section_of(kind, plain, features=None):
    """`network_g` of that kind of network around the plain one; `features` as in `WithVariance`."""
    if kind == 'plain':
        return plain
    step = ('step 1', 'step 2').index(kind)
    if plain['type'] in OWN_STEPS and features is None:
        return {**plain, 'type': plain['type'] + ('Var', 'Two')[step]}
    section = {'type': ('WithVariance', 'TwoStep')[step], 'backbone': plain}
    return section if features is None else {**section, 'features': features}
