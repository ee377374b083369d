"""Validation and test of a model image by image, with uncertainty maps for the metrics that take them."""
from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from os import path as osp
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.utils import tensor2img
from torch import Tensor
from tqdm import tqdm

from udl_plugin.inference.visualize import (
    absolute_error,
    comparison_picture,
    encode_map_files,
    encode_png,
    round_limit,
)
from udl_plugin.metrics.uncertainty_metrics import expected_error
from udl_plugin.utils.atomic_io import atomic_write

if TYPE_CHECKING:
    from udl_plugin.models.udl_model import UDLModel

MAX_WAITING = 4  # images whose metrics are computed while the GPU runs the next one
COLLAPSED_SPREAD = 0.05  # of a log-variance that tells pixels apart no more: weights of step 2 from 1 to 1.05


def validate(model: UDLModel, loader: Any, iteration: int | str, tb_logger: Any, save_img: bool) -> None:
    """Runs a model on each image of a data set, one at a time.

    Like `SRModel.nondist_validation`: same metrics, files and log lines. In addition, metrics that take `log_var` get
    it, maps are saved, TensorBoard gets a picture of the errors of the first images, the GPU's cached memory is
    released once, not after each image, and the GPU does not wait for metrics and files.

    Args:
        model: Its `test` sets `output` and, if `gets_map`, `log_var`.
        loader: Batches of one image; `loader.dataset.opt['name']` names the data set.
        iteration: Of the training, or the name of the test, for file names and the log.
        tb_logger: TensorBoard writer, or None.
        save_img: Whether to save the SR images.
    """
    name, val_opt = loader.dataset.opt['name'], model.opt['val']
    metrics = val_opt.get('metrics') or {}
    if metrics:
        model._initialize_best_metric_results(name)
    scores: list[Future[dict[str, float]]] = []
    pictures: dict[str, Future[np.ndarray]] = {}
    num_pictures = model.log_images if tb_logger else 0
    bar = tqdm(loader, unit='image', disable=not val_opt.get('pbar', False))
    with _pool_beside(model.device) as pool:
        for number, data in enumerate(bar):
            bar.set_description(f"Test {osp.splitext(osp.basename(data['lq_path'][0]))[0]}")
            is_drawn = number < num_pictures and 'gt' in data
            model.gets_map = model.validates_maps or (is_drawn and model.map_loss is not None)
            model.feed_data(data)
            model.test()
            visuals = model.get_current_visuals()
            images = {'img': tensor2img([visuals['result']])}
            if 'gt' in visuals:
                images['img2'] = tensor2img([visuals['gt']])
                del model.gt
            log_var = visuals['log_var'][0].numpy() if 'log_var' in visuals else None
            del model.lq, model.output, visuals  # the memory of large images
            stem = _output_stem(model, data['lq_path'][0], name, iteration)
            if is_drawn:
                tag = f"images/{name}/{osp.splitext(osp.basename(data['lq_path'][0]))[0]}"
                pictures[tag] = pool.submit(draw_errors, model, tag, images, log_var)
            scores.append(pool.submit(_save_and_score, model, images, log_var, stem, save_img))
            if len(scores) > MAX_WAITING:
                scores[-1 - MAX_WAITING].result()  # so that images do not pile up
        results = [score.result() for score in scores]
        for tag, picture in pictures.items():
            tb_logger.add_image(tag, picture.result()[:, :, ::-1], iteration, dataformats='HWC')
    model.gets_map = model.validates_maps
    torch.cuda.empty_cache()
    if metrics:
        model.metric_results = {metric: sum(result[metric] for result in results) / len(loader) for metric in metrics}
        for metric, value in model.metric_results.items():
            model._update_best_metric_result(name, metric, value, iteration)
        model._log_validation_metric_values(iteration, name, tb_logger)


def _pool_beside(device: torch.device) -> Executor:
    """Runs what comes after a network: beside it if that is on a GPU, which would wait, otherwise at once."""
    return ThreadPoolExecutor(MAX_WAITING) if device.type == 'cuda' else _AtOnce()


class _AtOnce(Executor):
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        future.set_result(function(*args, **kwargs))
        return future


def _save_and_score(model: UDLModel, images: dict[str, np.ndarray], log_var: np.ndarray | None, stem: str,
                    save_img: bool) -> dict[str, float]:
    """Saves an image and its map, if asked to, and returns its metrics."""
    val_opt = model.opt['val']
    if save_img:
        atomic_write(f'{stem}.png', encode_png(images['img']))  # cv2.imwrite takes no path with an umlaut on Windows
    if model.save_uncertainty and log_var is not None:
        for end, content in encode_map_files(log_var, **model.map_unit).items():
            atomic_write(f'{stem}{end}', content)
    results = {}
    for metric, metric_opt in (val_opt.get('metrics') or {}).items():
        extra = {'log_var': log_var} if metric_opt in model.map_metrics else {}
        # builtin floats: a checkpoint that `weights_only` reads holds no NumPy scalars
        results[metric] = float(calculate_metric({**images, **extra}, metric_opt))
    return results


def draw_errors(model: UDLModel, tag: str, images: dict[str, np.ndarray], log_var: np.ndarray | None) -> np.ndarray:
    """Draws an image, its ground truth, and its expected and true error; see `comparison_picture`.

    Args:
        model: Its `error_limits` keeps the limit of the errors, which the first picture of a tag fixes, so that later
            ones can be compared with it: a round number that less than 1 % of the true errors exceed.
        tag: Names the image.
        images: `img` and `img2`, the ground truth, uint8 `(H, W, 3)`, BGR, or `(H, W)`.
        log_var: `(C, H, W)`; None, or a map without a known unit: no expected error.
    """
    sr, gt = images['img'], images['img2']
    if tag not in model.error_limits:
        model.error_limits[tag] = round_limit(absolute_error(sr, gt))
    if log_var is None or not model.map_loss:
        return comparison_picture(sr, gt, model.error_limits[tag])
    expected = expected_error(log_var, model.map_loss).mean(axis=0)
    return comparison_picture(sr, gt, model.error_limits[tag], expected, model.map_unit['owner'])


def map_spread(log_var: Tensor) -> float:
    """Distance of the 5th and 95th percentile in an image, the largest of channels and of the first four images.

    Args:
        log_var: `(N, C, H, W)`.
    """
    levels = torch.tensor([0.05, 0.95], device=log_var.device)
    low, high = torch.quantile(log_var[:4].float().flatten(2), levels, dim=2)
    return float((high - low).max())


def _output_stem(model: UDLModel, lq_path: str, dataset_name: str, iteration: int | str) -> str:
    """Where BasicSR saves the SR image of an LR image, without the suffix."""
    image = osp.splitext(osp.basename(lq_path))[0]
    folder, ending = (image, iteration) if model.is_train else (
        dataset_name, model.opt['val'].get('suffix') or model.opt['name'])
    return osp.join(model.opt['path']['visualization'], folder, f'{image}_{ending}')

