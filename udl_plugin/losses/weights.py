"""How much each pixel weighs in step 2: what weighs (`SOURCES`), and how it is scaled (`SCALINGS`).

A new one of either is a function and a line in its table; the option `source` or `scaling` of `UDL` then takes it.
Of these, the paper (Ning et al., NeurIPS 2021) has the three sources and, of the scalings, `linear`, which it keeps,
and a logarithmic one. Its formula of that one and its other scalings are not known to us: `log`, `exp`, `sqrt` and
`minmax` are ours, and so is how the gradient is measured.
"""
from typing import Callable, NamedTuple

import torch

# ---- what weighs: ground truth, log-variance and error of the frozen network, all (N, C, H, W), the first and the last
# in 8-bit levels, to a map of that shape


def log_var(gt, log_var, frozen_error):
    """The log-variance of the frozen network of step 1: of ESU or of EU, as that was trained."""
    return log_var


def error(gt, log_var, frozen_error):
    """The absolute error of the frozen network's own SR image, in 8-bit levels."""
    return frozen_error.abs()


def gradient(gt, log_var, frozen_error):
    """The gradient's magnitude of the ground truth, in 8-bit levels a pixel (central differences, channel by channel).
    """
    return torch.hypot(*torch.gradient(gt, dim=(-2, -1)))


class Source(NamedTuple):
    weight_map: Callable
    required_outputs: tuple  # what the network must return beside the SR image
    is_log: bool = False  # of a few units; the others go up to 255 and beyond


SOURCES = {
    'log_var': Source(log_var, required_outputs=('log_var',), is_log=True),
    'error': Source(error, required_outputs=('frozen_sr',)),
    'gradient': Source(gradient, required_outputs=()),
}

# ---- how it is scaled: u is the map less its minimum, so 0 or more, the minimum per image and per channel


def linear(u):
    """`u`, the paper's choice."""
    return u


def log(u):
    """`ln(1 + u)`."""
    return torch.log1p(u)


def exp(u):
    """`exp(u) - 1`: from a log-variance, the error's scale itself. Of `source: log_var` only, the others overflow."""
    return torch.expm1(u)


def sqrt(u):
    """The root of `u`."""
    return torch.sqrt(u)


def minmax(u):
    """`u / max(u)`, the maximum per image and per channel: from 0 to 1. Where `u` is 0 throughout, 0."""
    return u / u.amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)


SCALINGS = {scaling.__name__: scaling for scaling in (linear, log, exp, sqrt, minmax)}


def udl_weight(source_map, offset=1.0, scaling='linear'):
    """The weight of each pixel in step 2: `scaling(m - min(m)) + offset`, the minimum per image and per channel.

    Args:
        source_map (Tensor): `(N, C, H, W)`, such as log_var. No gradient flows through it.
        offset (float): 1 in the authors' released code, 0 in the paper.
        scaling (str): One of `SCALINGS`; `linear` is the paper's.

    Returns:
        Tensor: `(N, C, H, W)`, at least `offset`.
    """
    source_map = source_map.detach()
    return SCALINGS[scaling](source_map - source_map.amin(dim=(-2, -1), keepdim=True)) + offset
