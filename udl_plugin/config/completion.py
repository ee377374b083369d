"""What BasicSR's `parse_options` derives from an option file."""
from __future__ import annotations

from collections.abc import Mapping
from os import path as osp
from typing import Any

import torch

from udl_plugin.config.problems import get_section
from udl_plugin.utils.plain import to_builtins


def complete_options(data: Mapping[str, Any], root_path: str, is_train: bool, auto_resume: bool = False,
                     debug: bool = False) -> dict[str, Any]:
    """The options that a training or test runs with, equal to those of BasicSR 1.4.2's `parse_options`.

    That also sets `dist`, `rank`, `world_size` and a random `manual_seed`. This function does not, and it accepts
    wrong options, so that all errors can be reported at once.

    Args:
        data: Content of an option file; is not changed.
        root_path: Where `experiments/NAME` or `results/NAME` is.
        is_train: For training, or for a test.
        auto_resume: As on the command line.
        debug: As on the command line: a trial with short intervals. A name with `debug` in it has the same effect.
    """
    opt: Any = to_builtins(data)
    opt['auto_resume'], opt['is_train'] = auto_resume, is_train
    if debug and not str(opt.get('name')).startswith('debug'):
        opt['name'] = f'debug_{opt.get("name")}'
    if opt.get('num_gpu') == 'auto':
        opt['num_gpu'] = torch.cuda.device_count()
    for phase, dataset in get_section(opt, 'datasets').items():
        if isinstance(dataset, dict):
            dataset['phase'] = phase.split('_')[0]
            if 'scale' in opt:
                dataset['scale'] = opt['scale']
            for key in ('dataroot_gt', 'dataroot_lq'):
                _expand_user(dataset, key)
    if not isinstance(opt.get('path'), dict):
        opt['path'] = {}
    for key in opt['path']:
        if 'resume_state' in key or 'pretrain_network' in key:
            _expand_user(opt['path'], key)
    root = osp.join(root_path, 'experiments' if is_train else 'results', str(opt.get('name')))
    if is_train:
        opt['path'].update(experiments_root=root, models=osp.join(root, 'models'),
                           training_states=osp.join(root, 'training_states'))
    else:
        opt['path']['results_root'] = root
    opt['path'].update(log=root, visualization=osp.join(root, 'visualization'))
    if is_train and 'debug' in str(opt.get('name')):
        for section, intervals in (('val', {'val_freq': 8}), ('logger', {'print_freq': 1, 'save_checkpoint_freq': 8})):
            if isinstance(opt.get(section), dict):
                opt[section].update(intervals)
    return opt


def _expand_user(options: dict[str, Any], key: str) -> None:
    if isinstance(options.get(key), str):
        options[key] = osp.expanduser(options[key])
