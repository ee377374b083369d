"""Scores of a network on benchmarks, image by image, through BasicSR's own test code."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from os import path as osp
from typing import Any, NamedTuple

import numpy as np
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.metrics import calculate_metric
from basicsr.models import build_model
from basicsr.utils import tensor2img

from udl_plugin.data.checked_dataset import CheckedDataset
from udl_plugin.studies.config import build_metrics
from udl_plugin.utils.imresize import imresize


class ImageResult(NamedTuple):
    """The output of a network for one image of a benchmark.

    Attributes:
        lq, sr, gt: uint8 `(H, W, 3)`, BGR, or `(H, W)`.
        log_var: float32 `(C, H, W)`, if asked for.
    """

    name: str
    lq: np.ndarray
    sr: np.ndarray
    gt: np.ndarray
    log_var: np.ndarray | None = None


OnImage = Callable[[str, ImageResult], object]


def compute_scores(sr: np.ndarray, gt: np.ndarray, scale: int) -> dict[str, float]:
    """`psnr` (dB) and `ssim` of a uint8 image, on Y, with `scale` pixels of border cropped."""
    return {name: float(calculate_metric({'img': sr, 'img2': gt}, opt)) for name, opt in build_metrics(scale).items()}


def get_image_name(path: str) -> str:
    """The name of an image in BasicSR's validation."""
    return osp.splitext(osp.basename(path))[0]


def evaluate(opt: dict[str, Any], on_image: OnImage, uncertainty: bool = False) -> None:
    """Runs a network on its datasets, image by image, through the methods that BasicSR's validation calls.

    Args:
        opt: See `build_test_opt`; or a test's option file as `parse_options` returns it.
        on_image: Called with the name of the dataset and the result, for each image.
        uncertainty: Whether results have a `log_var`. Requires UDLModel.

    Raises:
        UserError: options, data and checkpoint do not match.
    """
    model = build_model(opt)
    model.validates_maps = uncertainty
    for dataset_opt in opt['datasets'].values():
        for data in build_dataloader(build_test_set(dataset_opt, dataset_opt['scale']), dataset_opt):
            model.feed_data(data)
            model.test()
            visuals = model.get_current_visuals()
            lq, sr, gt = (tensor2img([visuals[key]]) for key in ('lq', 'result', 'gt'))
            log_var = visuals['log_var'][0].numpy() if 'log_var' in visuals else None
            on_image(dataset_opt['name'], ImageResult(get_image_name(data['lq_path'][0]), lq, sr, gt, log_var))


def evaluate_bicubic(datasets: Iterable[dict[str, Any]], scale: int, on_image: OnImage) -> None:
    """As `evaluate`, for MATLAB's bicubic upsampling.

    Args:
        datasets: Options of datasets.
    """
    for dataset_opt in datasets:
        dataset = build_test_set(dataset_opt, scale)
        for number in range(len(dataset)):
            item = dataset[number]
            lq, gt = tensor2img([item['lq']]), tensor2img([item['gt']])
            on_image(dataset_opt['name'], ImageResult(get_image_name(item['lq_path']), lq, imresize(lq, scale), gt))


def build_test_set(dataset_opt: dict[str, Any], scale: int) -> CheckedDataset:
    """A dataset whose errors name the corrupted file."""
    return CheckedDataset(build_dataset(complete_dataset_opt(dataset_opt, scale)), dataset_opt['name'])


def complete_dataset_opt(dataset_opt: dict[str, Any], scale: int) -> dict[str, Any]:
    """Options of a test's dataset with what `parse_options` adds."""
    return {**dataset_opt, 'phase': 'test', 'scale': scale}


def build_test_opt(name: str, network_g: dict[str, Any], path: dict[str, Any], scale: int,
                   datasets: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The options of a test, as `parse_options` would return them.

    Args:
        name: Of the test.
        path: With `pretrain_network_g`; `param_key_g` and `strict_load_g` are optional.
        datasets: Options of datasets.
    """
    return {
        'name': name, 'model_type': 'UDLModel', 'scale': scale, 'num_gpu': torch.cuda.device_count(),
        'manual_seed': 0, 'dist': False, 'rank': 0, 'world_size': 1, 'is_train': False, 'auto_resume': False,
        'datasets': {f'test_{number}': complete_dataset_opt(one, scale) for number, one in enumerate(datasets, 1)},
        'network_g': network_g, 'path': {'visualization': f'results/{name}/visualization', **path},
        'val': {'save_img': False},
    }
