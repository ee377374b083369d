"""The paper's effect on a laptop: trains and tests plain L1, step 1 and step 2, and compares them. `make demo`.

Everything runs through udl-train and udl-test, as a user would run them, with the files in options/demo/. The baseline
and UDL have equal numbers of iterations, the same initial weights, and the same data in the same order; the baseline is
trained in two halves too.
"""
from __future__ import annotations

import argparse
import collections
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from basicsr.archs import build_network
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.utils import img2tensor, tensor2img
from torch import Tensor, nn
from torch.nn import functional as F

from udl_plugin.archs.wrapping import base_state_dict
from udl_plugin.checkpoints.state_dict import read_state_dict
from udl_plugin.config import yaml_loader
from udl_plugin.inference.cost import machine, time_in_turn
from udl_plugin.inference.visualize import (
    absolute_error,
    add_color_bar,
    contact_sheet,
    encode_png,
    heat_map,
    round_limit,
)
from udl_plugin.prepare.demo_data import CROP, SCALE, STEP, write_demo_data
from udl_plugin.utils.atomic_io import atomic_write

DATA = 'datasets/demo'
OPTIONS = Path('options/demo')
TRAININGS = ('train_l1_step1', 'train_l1_step2', 'train_udl_step1', 'train_udl_step2')
TESTS = {'L1': 'test_l1', 'UDL step 1 (ESU)': 'test_udl_step1', 'UDL step 2': 'test_udl_step2'}
PHOTO = 'astronaut'
PICTURE = Path('results/demo.png')
TABLE = Path('results/demo.md')


def main() -> None:
    start = time.time()
    os.chdir(Path(__file__).resolve().parents[1])
    os.environ.setdefault('CUDA_VISIBLE_DEVICES', '0')  # BasicSR multiplies the batch size by the number of GPUs
    print(f'Data: udl-prepare train --hr {DATA}/photos/train --scales {SCALE} --out {DATA} --crop {CROP} --step {STEP}')
    print(f'      udl-prepare benchmark --hr {DATA}/photos/val --scales {SCALE} --name val --out {DATA}', flush=True)
    if not write_demo_data(DATA):
        print(f'  exists: {DATA}/ (remove it to write it again)')
    for number, name in enumerate(TRAININGS, 1):
        print(f'\nTraining {number} of {len(TRAININGS)}: udl-train -opt {OPTIONS}/{name}.yml', flush=True)
        if is_trained(name):
            print(f'  exists: {get_experiment(name)} (remove it to train again)')
        else:
            run('udl_plugin.train', name)
    for name in TESTS.values():
        print(f'\nTest: udl-test -opt {OPTIONS}/{name}.yml', flush=True)
        run('udl_plugin.test', name)

    gt, lq = (cv2.imread(f'{DATA}/val/{folder}/{PHOTO}.png') for folder in (f'GTmod{SCALE}', f'LRbicx{SCALE}'))
    lq = img2tensor(lq / 255.).unsqueeze(0)
    images = {'bicubic': tensor2img(bicubic(lq)), **{row: read_sr(name) for row, name in TESTS.items()}}
    networks = {row: load(name) for row, name in TESTS.items()}
    seconds = time_in_turn({'bicubic': bicubic, **{row: net for row, (net, _) in networks.items()}}, lq)
    psnr = {row: calculate_psnr(image, gt, crop_border=SCALE, test_y_channel=True) for row, image in images.items()}
    ssim = {row: calculate_ssim(image, gt, crop_border=SCALE, test_y_channel=True) for row, image in images.items()}

    iterations = read_yml('train_udl_step1')['train']['total_iter'], read_yml('train_udl_step2')['train']['total_iter']
    trained = {'bicubic': '-', 'L1': f'{sum(iterations)}', 'UDL step 1 (ESU)': f'{iterations[0]}',
               'UDL step 2': f'{iterations[0]} + {iterations[1]}'}
    lines = [f'| {PHOTO}, x{SCALE} | PSNR-Y (dB) | SSIM-Y | iterations | parameters at test time | ms per image |',
             '|---|---|---|---|---|---|']
    for row in images:
        parameters = networks[row][1] if row in networks else 0
        lines.append(f'| {row} | {psnr[row]:.2f} | {ssim[row]:.4f} | {trained[row]} | {parameters:,} '
                     f'| {1e3 * seconds[row]:.1f} |')
    lines += ['', f'Seed {read_yml("train_udl_step2")["manual_seed"]}, {machine()}.', '']
    atomic_write(TABLE, '\n'.join(lines).encode())
    atomic_write(PICTURE, encode_png(draw(images, gt, psnr)))
    print('\n' + '\n'.join(lines))
    print(f'Table:   {TABLE.resolve()}\nPicture: {PICTURE.resolve()}\nTotal: {time.time() - start:.0f} s.')


def read_yml(name: str) -> dict[str, Any]:
    return yaml_loader.read_yml(OPTIONS / f'{name}.yml')


def get_experiment(name: str) -> Path:
    return Path('experiments', read_yml(name)['name'])


def is_trained(name: str) -> bool:
    """Whether there is a finished training with exactly these options, started from the current network."""
    result, start = get_experiment(name) / 'models' / 'net_g_latest.pth', read_yml(name)['path']['pretrain_network_g']
    copy = get_experiment(name) / f'{name}.yml'  # with a header above the options
    return (result.exists() and copy.exists() and copy.read_bytes().endswith((OPTIONS / f'{name}.yml').read_bytes())
            and (start is None or Path(start).stat().st_mtime < result.stat().st_mtime))


def run(module: str, name: str) -> None:
    """Runs udl-train or udl-test in its own process and shows its progress; the full log is in its usual place."""
    command = [sys.executable, '-u', '-m', module, '-opt', str(OPTIONS / f'{name}.yml')]
    last: collections.deque[str] = collections.deque(maxlen=40)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors='replace') as process:
        for line in process.stdout or ():
            last.append(line)
            progress = re.search(r'iter: *([\d,]+),.*(eta: [\d:]+).*(l_pix: \S+)', line)
            if progress:
                print('  iteration {}, {}, {}'.format(*progress.groups()), flush=True)
            elif '# psnr' in line or '# ssim' in line:
                print('    ' + line.split('\tBest')[0].strip(), flush=True)
    if process.returncode:
        sys.exit(''.join(last) + f'\n{" ".join(command)} ended with status {process.returncode}.')


def bicubic(lq: Tensor) -> Tensor:
    """Upsamples `(1, 3, H, W)` in [0, 1] as MATLAB does (a = -0.5)."""
    return F.interpolate(lq, scale_factor=SCALE, mode='bicubic', antialias=True)


def read_sr(test_name: str) -> np.ndarray:
    """The SR image that udl-test saved."""
    name = read_yml(test_name)['name']
    return cv2.imread(f'results/{name}/visualization/{PHOTO}/{PHOTO}_{name}.png')


def load(test_name: str) -> tuple[nn.Module, int]:
    """The tested network, and the number of parameters that its SR image requires."""
    opt = read_yml(test_name)
    net = build_network(opt['network_g']).eval()
    state_dict, _ = read_state_dict(opt['path']['pretrain_network_g'])
    net.load_state_dict(state_dict)
    return net, sum(tensor.numel() for tensor in base_state_dict(state_dict).values())


def draw(images: dict[str, np.ndarray], gt: np.ndarray, psnr: dict[str, float], side: int = 100,
         width: int = 400) -> np.ndarray:
    """A contact sheet: the photo and three error maps on one scale; then the crop with the highest expected error.

    Args:
        images: SR images and bicubic, by row of the table.
        gt: The ground truth.
        psnr: Of the whole images.
        side: Of the crop; a divisor of `width`, so that a pixel is enlarged to a square.
        width: Of a picture.
    """
    name = read_yml(TESTS['UDL step 2'])['name']
    expected = np.load(f'results/{name}/visualization/{PHOTO}/{PHOTO}_{name}_expected_error.npy').mean(axis=2)
    errors = {"expected error (step 1's map)": expected, 'true error: L1': absolute_error(images['L1'], gt),
              'true error: UDL': absolute_error(images['UDL step 2'], gt)}
    limits = 0., round_limit(*errors.values())
    half = side // 2
    local = cv2.boxFilter(expected, -1, (side, side))[half:-half, half:-half]
    top, left = (int(place) for place in np.unravel_index(local.argmax(), local.shape))
    boxed = gt.copy()
    cv2.rectangle(boxed, (left - 2, top - 2), (left + side + 1, top + side + 1), (0, 255, 255), 2)

    def shrink(picture: np.ndarray) -> np.ndarray:
        return cv2.resize(picture, (width, width), interpolation=cv2.INTER_AREA)

    full = [('ground truth', shrink(boxed)),
            *((label, shrink(heat_map(error, limits))) for label, error in errors.items())]
    full[-1] = full[-1][0], add_color_bar(full[-1][1], limits, 'error (8-bit levels)', font=26)
    shown = {'bicubic': images['bicubic'], 'L1': images['L1'], 'UDL': images['UDL step 2'], 'ground truth': gt}
    rows = {'UDL': 'UDL step 2'}
    parts = [(label if label == 'ground truth' else f'{label}: {psnr[rows.get(label, label)]:.2f} dB on the photo',
              cv2.resize(image[top:top + side, left:left + side], (width, width), interpolation=cv2.INTER_NEAREST))
             for label, image in shown.items()]
    return contact_sheet([full, parts], margin=12, label_height=52)


if __name__ == '__main__':
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
