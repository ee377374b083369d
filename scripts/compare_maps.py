"""Compares cached uncertainty maps with those that step 2 computes online, on cropped and augmented patches:

    python scripts/compare_maps.py --model STEP1.pth --data HR.lmdb LR.lmdb --maps UNCERTAINTY.lmdb --patch 48
"""
from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from basicsr.utils import imfrombytes, img2tensor
from torch import Tensor

from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.cli.common import path_arg, positive_int
from udl_plugin.data.lmdb_io import open_lmdb, read_meta_info
from udl_plugin.data.map_format import dequantize, read_metadata
from udl_plugin.inference.cost import machine
from udl_plugin.losses import udl_weight
from udl_plugin.studies.report import markdown_table

BORDER = 8  # of a patch, in HR pixels


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--model', type=path_arg, required=True, help='checkpoint of step 1')
    add('--data', nargs=2, type=path_arg, required=True, metavar='LMDB', help='the training set: HR, then LR')
    add('--maps', type=path_arg, required=True, metavar='LMDB', help='their maps, from udl-prepare uncertainty')
    add('--patch', type=positive_int, default=48, help='side of the LR patches (default: %(default)s)')
    add('--number', type=positive_int, default=500, help='number of patches (default: %(default)s)')
    args = parser.parse_args(argv)
    print(compare(args.model, args.data[1], args.maps, args.patch, args.number))
    return 0


@torch.no_grad()
def compare(model: str | Path, lr: str | Path, maps: str | Path, patch: int, number: int) -> str:
    """Compares `number` random patches; returns a table."""
    network_file = load_network_file(model, 'params')
    net, (_, scale) = network_file.build(), network_file.channels_and_scale
    log_var = getattr(net, 'var_net', net).log_var
    limits, keys = read_metadata(maps)['limits'], list(read_meta_info(lr))
    random.seed(0)
    found = {name: [] for name in ('8 bit', 'cut from the whole', 'flipped and turned', 'all')}
    with open_lmdb(lr) as lr_env, open_lmdb(maps) as maps_env:
        for _ in range(number):
            key = random.choice(keys)
            with lr_env.begin() as one, maps_env.begin() as other:
                lq = img2tensor(imfrombytes(one.get(key.encode()), float32=True))[None]
                stored = cv2.imdecode(np.frombuffer(other.get(key.encode()), np.uint8), cv2.IMREAD_UNCHANGED)
            stored = torch.from_numpy(dequantize(stored, limits[key]))[None]
            whole = log_var(lq)
            top, left = (random.randrange(length - patch + 1) for length in lq.shape[2:])
            flip, turns = random.random() < 0.5, random.randrange(4)
            small = _crop(lq, top, left, patch, 1)
            online = log_var(small)
            turned = log_var(_augment(small, flip, turns))
            stored, whole = (_crop(image, top, left, patch, scale) for image in (stored, whole))
            for name, pair in zip(found, ((stored, whole), (whole, online), (_augment(online, flip, turns), turned),
                                          (_augment(stored, flip, turns), turned))):
                found[name].append(_compute_differences(*pair))
    rows = [['difference from the online map', 'all pixels', f'{BORDER} pixels at the border', 'inside', 'weights']]
    rows += [[name, *(f'{value:.3f}' for value in np.mean(values[:3], axis=1)), f'{np.mean(values[3]):.1%}']
             for name, values in ((name, np.transpose(values)) for name, values in found.items())]
    return (f'{number} LR patches of {patch} at x{scale}: mean absolute differences of log_var, and of the weight '
            f's - min s + 1, relative to it. {machine()}.\n\n{markdown_table(rows)}')


def _crop(x: Tensor, top: int, left: int, patch: int, scale: int) -> Tensor:
    return x[:, :, scale * top:scale * (top + patch), scale * left:scale * (left + patch)]


def _augment(x: Tensor, flip: bool, turns: int) -> Tensor:
    return torch.rot90(x.flip(3) if flip else x, turns, (2, 3))


def _compute_differences(one: Tensor, other: Tensor) -> list[float]:
    """Mean absolute difference of two maps: of all pixels, at the border, inside; and relative, of their weights."""
    difference = (one - other).abs().mean(dim=1)[0]
    inside = difference[BORDER:-BORDER, BORDER:-BORDER]
    at_border = (difference.sum() - inside.sum()) / (difference.numel() - inside.numel())
    one, other = udl_weight(one), udl_weight(other)
    weights = ((one - other).abs() / other).mean()
    return [float(value) for value in (difference.mean(), at_border, inside.mean(), weights)]


if __name__ == '__main__':
    sys.exit(main())
