"""Runs a network on overlapping tiles of an image, so that it needs less memory."""
from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from udl_plugin.archs.dpdnn_arch import dpdnn_receptive_radius
from udl_plugin.archs.edsr_arch import edsr_receptive_radius
from udl_plugin.archs.padding import get_declared
from udl_plugin.archs.wrapping import base_config

ALIGN = 16  # tiles start at multiples of it: DPDNN halves the image four times, SwinIR's windows are 8 pixels
MIN_TILE = 64
RECEPTIVE_RADII = {'EDSR': edsr_receptive_radius, 'DPDNN': dpdnn_receptive_radius}  # in LR pixels


Index = tuple[Any, ...]  # `(..., rows, columns)`


class Tile(NamedTuple):
    """A part of an image; each attribute is an index of the last two dimensions.

    Attributes:
        source: Of the LR image: the part and its overlap.
        inside: Of what the network makes of `source`: without the overlap.
        target: Of the SR image: where `inside` goes.
    """

    source: Index
    inside: Index
    target: Index


def split_into_tiles(height: int, width: int, scale: int, tile: int | None, overlap: int) -> list[Tile]:
    """Splits an image of `height` x `width` LR pixels into tiles.

    Args:
        scale: Of the network.
        tile: Largest side of a tile with its overlap, in LR pixels; None: one tile, the full image.
        overlap: On each side, in LR pixels, from `find_overlap`.
    """
    return [Tile(*((..., *pair) for pair in zip(rows, columns))) for rows, columns in itertools.product(
        *(_split_side(length, scale, tile, overlap) for length in (height, width)))]


def _split_side(length: int, scale: int, tile: int | None, overlap: int) -> list[tuple[slice, slice, slice]]:
    """Source, inside and target of each tile along one side."""
    step = length if tile is None or length <= tile else (tile - 2 * overlap) // ALIGN * ALIGN
    sides = []
    for start in range(0, length, step):
        end, before = min(start + step, length), min(start, overlap)
        sides.append((slice(start - before, end + overlap), slice(scale * before, scale * (before + end - start)),
                      slice(scale * start, scale * end)))
    return sides


def get_receptive_radius(network_g: Mapping[str, Any]) -> int | None:
    """How many LR pixels away the network of a config sees; None if unknown.

    A network class declares its own as the attribute `receptive_radius`, an integer or a function of the options.
    """
    config = base_config(network_g)
    radius = RECEPTIVE_RADII.get(config['type'])
    return radius(config) if radius else get_declared(config, 'receptive_radius', 0)


def find_overlap(tile: int, receptive_radius: int | None) -> tuple[int, str]:
    """The receptive radius, or as much of it as tiles of `tile` LR pixels allow, a multiple of 16.

    Returns:
        The overlap on each side, and a note if the result differs from that of the full image, otherwise ''.
    """
    largest = tile // 4 // ALIGN * ALIGN
    enough = -(-(receptive_radius or 0) // ALIGN) * ALIGN  # rounded up
    if 0 < enough <= largest:
        return enough, ''
    return largest, (f'tiles overlap by {largest} pixels on each side, and the receptive radius of the network is '
                     f'{receptive_radius or "unknown"}: the result differs slightly from the one without tiles.'
                     + f' A tile of {4 * enough} gives the same result.' * (enough > 0))


def run_in_tiles(run: Callable[[Tensor], Tensor], lq: Tensor, scale: int, tile: int, overlap: int) -> Tensor:
    """Runs a network on each tile of an image.

    Args:
        run: Turns a part of `lq`, `(N, C, h, w)`, into `(N, D, scale * h, scale * w)`.
        lq: `(N, C, H, W)`.
        scale, tile, overlap: See `split_into_tiles`.

    Returns:
        `(N, D, scale * H, scale * W)` on the CPU, since the device has no memory to spare.
    """
    result: Tensor | None = None
    height, width = lq.shape[2:]
    for part in split_into_tiles(height, width, scale, tile, overlap):
        out = run(lq[part.source])[part.inside].cpu()
        if result is None:
            result = torch.empty((*out.shape[:2], scale * height, scale * width), dtype=out.dtype)
        result[part.target] = out
    assert result is not None
    return result
