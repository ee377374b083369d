"""Scores of a network on benchmarks, image by image, through BasicSR's own test code."""
from os import path as osp
from typing import NamedTuple

import numpy as np
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.models import build_model
from basicsr.utils import tensor2img

from udl_plugin.data.checked_dataset import CheckedDataset
from udl_plugin.utils.imresize import imresize


class Scores(NamedTuple):
    """PSNR (dB) and SSIM of an image, on Y, with `scale` pixels of border cut."""

    psnr: float
    ssim: float


class Image(NamedTuple):
    """What a network made of an image of a benchmark.

    Attributes:
        lq, sr, gt (ndarray): uint8 `(H, W, 3)`, BGR, or `(H, W)`.
        log_var (ndarray | None): float32 `(C, H, W)`.
    """

    name: str
    lq: np.ndarray
    sr: np.ndarray
    gt: np.ndarray
    log_var: np.ndarray = None


def scores_of(sr, gt, scale):
    """The protocol's `Scores` of two images, uint8."""
    return Scores(*(float(metric(sr, gt, crop_border=scale, test_y_channel=True))
                    for metric in (calculate_psnr, calculate_ssim)))


def name_of(path):
    """As upstream's validation calls an image."""
    return osp.splitext(osp.basename(path))[0]


def evaluate(opt, on_image, uncertainty=False):
    """Runs a network over its data sets, as BasicSR's `test_pipeline` does.

    Args:
        opt (dict): As `test_options` returns it, or `parse_options` of a test yml.
        on_image (Callable): Called as `on_image(set_name, image)` with each `Image`.
        uncertainty (bool): Whether images come with their map. UDLModel alone gives it.

    Raises:
        UserError: options, data or checkpoint do not fit each other.
    """
    model = build_model(opt)
    model.wants_log_var = uncertainty
    feed_data, get_current_visuals = model.feed_data, model.get_current_visuals
    now = {}

    def feed_and_note(data):
        now['name'] = name_of(data['lq_path'][0])
        feed_data(data)

    def visuals_and_report():
        visuals = get_current_visuals()
        lq, sr, gt = (tensor2img([visuals[key]]) for key in ('lq', 'result', 'gt'))
        log_var = visuals.get('log_var')
        on_image(now['set'], Image(now['name'], lq, sr, gt, None if log_var is None else log_var[0].numpy()))
        return visuals

    model.feed_data, model.get_current_visuals = feed_and_note, visuals_and_report
    for dataset_opt in opt['datasets'].values():
        loader = build_dataloader(careful_test_set(dataset_opt, dataset_opt['scale']), dataset_opt)
        now['set'] = dataset_opt['name']
        model.validation(loader, current_iter=opt['name'], tb_logger=None, save_img=opt['val'].get('save_img', False))


def evaluate_bicubic(datasets, scale, on_image):
    """As `evaluate`, for MATLAB's bicubic upsampling in place of a network.

    Args:
        datasets (list[dict]): Sections of a yml.
    """
    for dataset_opt in datasets:
        dataset = careful_test_set(dataset_opt, scale)
        for number in range(len(dataset)):
            item = dataset[number]
            lq, gt = tensor2img([item['lq']]), tensor2img([item['gt']])
            on_image(dataset_opt['name'], Image(name_of(item['lq_path']), lq, imresize(lq, scale), gt))


def careful_test_set(section, scale):
    """The data set of a section; what is bad in it is told by name (see `CheckedDataset`)."""
    return CheckedDataset(build_dataset(for_test(section, scale)), section['name'])


def for_test(section, scale):
    """A data set's section with what `parse_options` adds."""
    return {**section, 'phase': 'test', 'scale': scale}


def test_options(name, network_g, path, scale, datasets):
    """What `parse_options` would make of a test yml.

    Args:
        name (str): Of the test.
        network_g (dict): The network's section.
        path (dict): `pretrain_network_g`, and `param_key_g`, `strict_load_g` where needed.
        scale (int): Of the network and the data.
        datasets (list[dict]): Sections of a yml.
    """
    return {
        'name': name, 'model_type': 'UDLModel', 'scale': scale, 'num_gpu': torch.cuda.device_count(),
        'manual_seed': 0, 'dist': False, 'rank': 0, 'world_size': 1, 'is_train': False, 'auto_resume': False,
        'datasets': {f'test_{number}': for_test(dataset, scale) for number, dataset in enumerate(datasets, 1)},
        'network_g': network_g, 'path': path, 'val': {'save_img': False},
    }
