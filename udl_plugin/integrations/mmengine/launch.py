"""Trains or tests a config of mmengine, with the options of OpenMMLab's tools.

    python -m udl_plugin.integrations.mmengine.launch train|test CONFIG ...
    torchrun --nproc_per_node=4 -m udl_plugin.integrations.mmengine.launch train CONFIG --launcher pytorch

A config is a Python file and is executed: take none from strangers.
"""
from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
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
from udl_plugin.training.launch_env import LAUNCHERS, check_launcher


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line. Returns the exit status: 0, or 2 after a `UserError`, which is printed in one line."""
    args = _make_parser().parse_args(arguments)
    try:
        check_launcher(args.launcher)
        cfg = _read_config(args)
        _set_training(cfg, args) if args.command == 'train' else _set_test(cfg, args)
        cfg.custom_hooks = cfg.get('custom_hooks') or []
        if not any(hook.get('type') == 'NetworkCheckpointHook' for hook in cfg.custom_hooks):
            cfg.custom_hooks.append({'type': 'NetworkCheckpointHook'})  # without it, mmengine loads whatever fits
        install_file_handlers()
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        runner.train() if args.command == 'train' else runner.test()
    except UserError as err:
        message = re.split(r'\nudl_plugin\.[\w.]+: ', str(err))[-1].strip()  # without a data-loader worker's traceback
        print(f'{osp.basename(sys.argv[0])}: {message}', file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m udl_plugin.integrations.mmengine.launch')
    commands = parser.add_subparsers(dest='command', required=True)
    train = commands.add_parser('train', help='train', description='Trains.')
    test = commands.add_parser('test', help='test a checkpoint', description='Tests a checkpoint.')
    for command in (train, test):
        command.add_argument('config', help='a Python file, such as options/mmengine/demo_udl_step1.py')
        command.add_argument('--work-dir', metavar='DIR', help="default: the config's, or work_dirs/CONFIG")
        command.add_argument('--launcher', choices=LAUNCHERS, default='none')
        command.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                             help='override options of the config, such as train_dataloader.batch_size=8')
    train.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                       help='resume this checkpoint, or the last one in the work dir')
    train.add_argument('--amp', action='store_true', help='bf16 autocast (GPU only)')
    train.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    test.add_argument('checkpoint', help='a .pth file of mmengine or BasicSR')
    return parser


def _read_config(args: argparse.Namespace) -> Any:
    if not (osp.isfile(args.config) and args.config.endswith('.py')):
        raise UserError(f"config: '{args.config}' is not a Python file, such as options/mmengine/demo_udl_step1.py. "
                        'For an option file (.yml) there is udl-train -opt.')
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
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


if __name__ == '__main__':
    sys.exit(main())
