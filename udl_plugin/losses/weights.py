"""Pixel weights: which map gives them (`SOURCES`) and how its values become weights (`SCALINGS`).

To add one, write a function and a line in its table; the option `source` or `scaling` of `UDL` then accepts it.
The sources `log_var`, `error` and `gradient` are from the paper (Ning et al., NeurIPS 2021), and so is the scaling
`linear`, which it adopts. It also tries a logarithmic scaling and others, whose formulas we do not know: `log`, `exp`,
`sqrt` and `minmax` are our own, and so is the definition of the gradient. `teacher_residual` is the map of UPSR (CVPR
2025).
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Callable, NamedTuple

import torch
from torch import Tensor

# ---- sources: (target, outputs) -> map, all (N, C, H, W). `target`, the ground truth, and the images in `outputs` are
# in 8-bit levels. `outputs` has those that the source requires, by the names of `udl_plugin/archs/outputs.py`.


def log_var(target: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
    """Log-variance of the frozen step-1 network, which was trained with ESU or EU."""
    return outputs['log_var']


def error(target: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
    """Absolute error of the frozen network's own SR image, in 8-bit levels."""
    return (target - outputs['frozen_sr']).abs()


def gradient(target: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
    """Gradient magnitude of the ground truth, in 8-bit levels per pixel: central differences, for each channel."""
    return torch.hypot(*torch.gradient(target, dim=(-2, -1)))


def teacher_error(target: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
    """Absolute error of the teacher's SR image, in 8-bit levels."""
    return (target - outputs['teacher_sr']).abs()


def teacher_residual(target: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
    """What the teacher adds to bicubic upsampling, `|SR - bicubic|`, in 8-bit levels. Needs no ground truth."""
    return (outputs['teacher_sr'] - outputs['bicubic']).abs()


class Source(NamedTuple):
    weight_map: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
    required_outputs: tuple[str, ...]  # what the model must give beside the SR image
    is_log: bool = False  # values of a few units; the other maps reach 255 and more


SOURCES = {
    'log_var': Source(log_var, required_outputs=('log_var',), is_log=True),
    'error': Source(error, required_outputs=('frozen_sr',)),
    'gradient': Source(gradient, required_outputs=()),
    'teacher_error': Source(teacher_error, required_outputs=('teacher_sr',)),
    'teacher_residual': Source(teacher_residual, required_outputs=('teacher_sr', 'bicubic')),
}

# ---- scalings: u -> weight, where u >= 0 is the map minus its minimum per image and per channel


def linear(u: Tensor) -> Tensor:
    """`u`, the paper's choice."""
    return u


def log(u: Tensor) -> Tensor:
    """`ln(1 + u)`."""
    return torch.log1p(u)


def exp(u: Tensor) -> Tensor:
    """`exp(u) - 1`: turns a log-variance into the error's scale. Only for `source: log_var`; others overflow."""
    return torch.expm1(u)


def sqrt(u: Tensor) -> Tensor:
    """The square root of `u`."""
    return torch.sqrt(u)


def minmax(u: Tensor) -> Tensor:
    """`u / max(u)`, the maximum per image and per channel: in [0, 1], and 0 for a constant map."""
    return u / u.amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)


def none(u: Tensor) -> Tensor:
    """0: all weights are `offset`, as in plain L1."""
    return torch.zeros_like(u)


SCALINGS = {scaling.__name__: scaling for scaling in (linear, log, exp, sqrt, minmax, none)}


def udl_weight(source_map: Tensor, offset: float = 1.0, scaling: str = 'linear') -> Tensor:
    """Pixel weights: `scaling(m - min(m)) + offset`, the minimum per image and per channel.

    Args:
        source_map: `m`, `(N, C, H, W)`, such as the log-variance. No gradient flows through it.
        offset: 1 in the authors' released code, 0 in the paper.
        scaling: A key of `SCALINGS`; `linear` is the paper's.

    Returns:
        `(N, C, H, W)`, at least `offset`.
    """
    source_map = source_map.detach()
    return SCALINGS[scaling](source_map - source_map.amin(dim=(-2, -1), keepdim=True)) + offset
