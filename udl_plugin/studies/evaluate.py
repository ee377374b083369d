"""Scores of a network on benchmarks, image by image, through BasicSR's own test code."""
from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.metrics import calculate_metric
from basicsr.models import build_model
from basicsr.utils import tensor2img

from udl_plugin.checkpoints.state_dict import DEFAULT_KEY
from udl_plugin.data.checked_dataset import CheckedDataset
from udl_plugin.studies.config import MAP_METRICS, Config, build_metrics
from udl_plugin.utils.imresize import imresize

Scores = dict[str, dict[str, dict[str, float]]]  # benchmark to image to metric


class ImageResult(NamedTuple):
    """The output of a network for one image of a benchmark.

    Attributes:
        lq, sr, gt: uint8 `(H, W, 3)`, BGR, or `(H, W)`.
        log_var: float32 `(C, H, W)`, if asked for.
    """

    benchmark: str
    name: str
    lq: np.ndarray
    sr: np.ndarray
    gt: np.ndarray
    log_var: np.ndarray | None = None

    def compute_scores(self, scale: int) -> dict[str, float]:
        """`psnr` (dB) and `ssim` on Y, with `scale` pixels of border cropped."""
        images = {'img': self.sr, 'img2': self.gt}
        return {name: float(calculate_metric(images, opt)) for name, opt in build_metrics(scale).items()}

    def compute_map_scores(self, scale: int, loss: str) -> dict[str, float]:
        """The `MAP_METRICS` of `log_var`, with `scale` pixels of border cropped.

        Args:
            loss: That the map was trained with, such as `ESU`.
        """
        images = {'img': self.sr, 'img2': self.gt, 'log_var': self.log_var}
        return {name: float(calculate_metric(images, {'type': name, 'crop_border': scale, **(
            {'loss': loss} if name == 'calculate_map_calibration' else {})})) for name in MAP_METRICS}


def evaluate(opt: Config, benchmarks: Iterable[Config], uncertainty: bool = False) -> Iterator[ImageResult]:
    """Runs a network on benchmarks, image by image, through the methods that BasicSR's validation calls.

    Args:
        opt: See `build_test_opt`.
        benchmarks: Options of datasets.
        uncertainty: Whether results have a `log_var`. Requires UDLModel.

    Raises:
        UserError: options, data and checkpoint do not match.
    """
    datasets = {f'test_{number}': complete_dataset_opt(one, opt['scale']) for number, one in enumerate(benchmarks, 1)}
    model = build_model({**opt, 'datasets': datasets})
    model.gets_map = uncertainty
    for dataset_opt in datasets.values():
        for data in build_dataloader(build_test_set(dataset_opt, opt['scale']), dataset_opt):
            model.feed_data(data)
            model.test()
            visuals = model.get_current_visuals()
            lq, sr, gt = (tensor2img([visuals[key]]) for key in ('lq', 'result', 'gt'))
            log_var = visuals['log_var'][0].numpy() if 'log_var' in visuals else None
            yield ImageResult(dataset_opt['name'], Path(data['lq_path'][0]).stem, lq, sr, gt, log_var)


def evaluate_bicubic(benchmarks: Iterable[Config], scale: int) -> Iterator[ImageResult]:
    """As `evaluate`, for MATLAB's bicubic upsampling."""
    for dataset_opt in benchmarks:
        dataset = build_test_set(dataset_opt, scale)
        for number in range(len(dataset)):
            item = dataset[number]
            lq, gt = tensor2img([item['lq']]), tensor2img([item['gt']])
            yield ImageResult(dataset_opt['name'], Path(item['lq_path']).stem, lq, imresize(lq, scale), gt)


def build_test_set(dataset_opt: Config, scale: int) -> CheckedDataset:
    """A dataset whose errors name the corrupted file."""
    return CheckedDataset(build_dataset(complete_dataset_opt(dataset_opt, scale)), dataset_opt['name'])


def complete_dataset_opt(dataset_opt: Config, scale: int) -> Config:
    """Options of a test's dataset with what `parse_options` adds."""
    return {**dataset_opt, 'phase': 'test', 'scale': scale}


def build_test_opt(name: str, network_g: Config, path: Config, scale: int | None, tile: int | None = None) -> Config:
    """The options of a test, as `parse_options` would return them, without datasets.

    Args:
        name: Of the test.
        path: With `pretrain_network_g`; `param_key_g` and `strict_load_g` are optional.
        tile: Of `val`; see UDLModel.
    """
    return {
        'name': name, 'model_type': 'UDLModel', 'scale': scale, 'num_gpu': torch.cuda.device_count(),
        'manual_seed': 0, 'dist': False, 'rank': 0, 'world_size': 1, 'is_train': False, 'auto_resume': False,
        'datasets': {}, 'network_g': network_g, 'val': {'save_img': False, 'tile': tile},
        'path': {'visualization': f'results/{name}/visualization', 'param_key_g': DEFAULT_KEY, **path},
    }


def mean_score(images: Mapping[str, Mapping[str, float]], metric: str) -> float:
    """The mean of a metric over the images of a benchmark."""
    return statistics.fmean(scores[metric] for scores in images.values())


def list_scores(scores: Scores) -> list[tuple[Any, ...]]:
    """Rows of a CSV file: benchmark, image and the metrics of each image."""
    return [(benchmark, image, *(f'{value:.6f}' for value in metrics.values()))
            for benchmark, images in scores.items() for image, metrics in sorted(images.items())]
