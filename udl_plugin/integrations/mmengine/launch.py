"""Trains or tests a config of mmengine: what udl-mm-train and udl-mm-test do. Their arguments: udl_plugin/cli/mm.py."""
from __future__ import annotations

import argparse
import re
import runpy
import sys
from os import path as osp
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.fileio import register_backend
from mmengine.registry import RUNNERS
from mmengine.runner import CheckpointLoader, Runner

import udl_plugin.integrations.mmengine  # noqa: F401 (registers)
from udl_plugin.errors import UserError
from udl_plugin.integrations.mmengine.checkpoints import AtomicLocalBackend, find_last_checkpoint, load_file
from udl_plugin.training.launch_env import check_launcher


def launch(command: str, args: argparse.Namespace) -> int:
    """Runs mmengine's Runner.

    Args:
        command: `train` or `test`.
        args: The options of udl-mm-train or udl-mm-test; `cfg_options` are strings `KEY=VALUE`.

    Returns:
        Exit status: 0, or 2 after a `UserError`, which is printed in one line.
    """
    try:
        check_launcher(args.launcher)
        cfg = _read_config(args)
        _set_training(cfg, args) if command == 'train' else _set_test(cfg, args)
        cfg.custom_hooks = cfg.get('custom_hooks') or []
        if not any(hook.get('type') == 'NetworkCheckpointHook' for hook in cfg.custom_hooks):
            cfg.custom_hooks.append({'type': 'NetworkCheckpointHook'})  # without it, mmengine loads whatever fits
        install_file_handlers()
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        runner.train() if command == 'train' else runner.test()
    except UserError as err:
        message = re.split(r'\nudl_plugin\.[\w.]+: ', str(err))[-1].strip()  # without a data-loader worker's traceback
        print(f'udl-mm-{command}: {message}', file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def _read_config(args: argparse.Namespace) -> Any:
    if not (osp.isfile(args.config) and args.config.endswith('.py')):
        raise UserError(f"config: '{args.config}' is not a Python file, such as options/mmengine/demo_udl_step1.py. "
                        'For an option file (.yml) there is udl-train -opt.')
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        parser = argparse.ArgumentParser()
        parser.add_argument('--cfg-options', nargs='+', action=DictAction)  # parses values as OpenMMLab's tools do
        cfg.merge_from_dict(parser.parse_args(['--cfg-options', *args.cfg_options]).cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or osp.join(
        'work_dirs', osp.splitext(osp.basename(args.config))[0])
    return cfg


def _set_training(cfg: Any, args: argparse.Namespace) -> None:
    checkpoint = find_last_checkpoint(cfg.work_dir) if args.resume == 'auto' else args.resume
    if checkpoint:  # otherwise the training starts, with load_from
        cfg.resume, cfg.load_from = True, checkpoint
    if args.amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UserError(f'--auto-scale-lr: set auto_scale_lr = dict(base_batch_size=...) in {args.config}.')
        cfg.auto_scale_lr.enable = True


def _set_test(cfg: Any, args: argparse.Namespace) -> None:
    cfg.load_from = args.checkpoint
    if args.launcher == 'none':  # one process tests the complete network, also of a sharded training
        cfg.pop('runner_type', None)
        cfg.pop('strategy', None)


def install_file_handlers() -> None:
    """Makes mmengine write files atomically, and read every checkpoint safely: local files only."""
    for scheme in list(CheckpointLoader._schemes):
        CheckpointLoader.register_scheme(scheme, load_file, force=True)
    register_backend('local', AtomicLocalBackend, force=True, prefixes='')


if __name__ == '__main__':  # the name of the command in an earlier version
    runpy.run_module('udl_plugin.cli.mm', run_name='__main__')
