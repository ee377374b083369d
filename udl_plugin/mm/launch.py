"""scripts/mm_train.py and scripts/mm_test.py: mmengine's `Runner` on a config, in the habit of OpenMMLab's tools.

A config is a Python file, and is run: take none from strangers.
"""
import argparse
import os
import sys
from os import path as osp

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.fileio import register_backend
from mmengine.registry import RUNNERS
from mmengine.runner import CheckpointLoader, Runner

import udl_plugin.mm  # noqa: F401 (registers)
from udl_plugin.errors import InputError, raise_all
from udl_plugin.mm.checkpoints import WholeFiles, load_file, newest
from udl_plugin.mm.configs import section_problems, unread


def train(arguments=None):
    """Trains; returns the exit status: 0, or 2 where the input was wrong, and stderr says it in a line."""
    parser = _parser('Trains.')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                        help='go on from this checkpoint, or from the last one in the work dir')
    parser.add_argument('--amp', action='store_true', help='bf16 autocast')
    parser.add_argument('--auto-scale-lr', action='store_true', help='learning rate for the batch of all processes')
    return _run(parser, arguments, _for_training, lambda runner: runner.train())


def test(arguments=None):
    """Tests a checkpoint of either host; returns the exit status as `train` does."""
    parser = _parser('Tests.')
    parser.add_argument('checkpoint', help="a .pth of mmengine's or BasicSR's side")
    return _run(parser, arguments, _for_test, lambda runner: runner.test())


def _parser(about):
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument('config', help='a Python file, such as options/mmengine/demo_udl_step1.py')
    parser.add_argument('--work-dir', metavar='DIR', help="in place of the config's; work_dirs/CONFIG where neither is")
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                        help='options in place of those of the config: train_dataloader.batch_size=8')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def _for_training(cfg, args):
    resumed = args.resume
    if resumed == 'auto' or (cfg.get('resume') is True and not (resumed or cfg.get('load_from'))):
        resumed, passed_over = newest(cfg)
        for problem in passed_over:
            _tell(args, f'passed over: {problem}')
    elif resumed:
        _refuse_missing(resumed, '--resume')
    if resumed:  # else it begins, with load_from
        cfg.resume, cfg.load_from = True, resumed
    else:
        _refuse_missing(cfg.get('load_from'), 'load_from')
    if args.amp:
        if get_device() == 'cpu':
            raise InputError("--amp: mmengine has it on GPUs alone, and there is none here; BasicSR's side has it on "
                             'the CPU too.')
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise InputError(f'--auto-scale-lr: {args.config} has no auto_scale_lr = dict(base_batch_size=...).')
        cfg.auto_scale_lr.enable = True


def _for_test(cfg, args):
    _refuse_missing(args.checkpoint, 'checkpoint')
    cfg.load_from = args.checkpoint


def _refuse_missing(path, what):
    if not path:
        return
    if '://' in path:
        raise InputError(f"{what}: '{path}' is no file: download it first. (mmengine would execute what it downloads.)")
    path = osp.expanduser(path)
    if osp.isdir(path):
        raise InputError(f"{what}: '{path}' is a folder; name a file in it.")
    if not osp.isfile(path):
        raise InputError(f"{what}: there is no file '{path}' (seen from {osp.abspath('.')}).")


def _run(parser, arguments, prepare, start):
    args, started = parser.parse_args(arguments), False
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    try:
        _refuse_missing(args.config, 'config')
        if not args.config.endswith('.py'):
            raise InputError(f"config: '{args.config}' is no config of mmengine, a Python file such as "
                             'options/mmengine/demo_udl_step1.py; udl-train -opt takes a yml.')
        cfg = Config.fromfile(args.config)
        raise_all(unread(args.cfg_options))
        cfg.merge_from_dict(args.cfg_options)
        cfg.launcher = args.launcher
        cfg.work_dir = args.work_dir or cfg.get('work_dir') or osp.join(
            'work_dirs', osp.splitext(osp.basename(args.config))[0])
        prepare(cfg, args)
        cfg.custom_hooks = cfg.get('custom_hooks') or []
        if not any(hook.type == 'NetworkCheckpointHook' for hook in cfg.custom_hooks):
            cfg.custom_hooks.append({'type': 'NetworkCheckpointHook'})  # else mmengine loads what fits, if anything
        if cfg.get('default_scope') in (None, 'mmengine'):  # names of other scopes are known to their packages alone
            raise_all(section_problems(cfg))
        CheckpointLoader.register_scheme('', load_file, force=True)
        register_backend('local', WholeFiles, force=True, prefixes='')
        if args.launcher == 'pytorch' and not torch.cuda.is_available():
            _without_gpus(cfg)
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        started = True
        start(runner)
    except InputError as err:
        told = str(err).rpartition(f'{InputError.__module__}.{InputError.__name__}: ')[2]  # of a loading process
        _tell(args, told.strip(), own=started)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def _tell(args, message, own=False):
    """In a line on stderr; of several processes the first alone, but for what one may meet on its `own`."""
    if own or int(os.environ.get('SLURM_PROCID' if args.launcher == 'slurm' else 'RANK', 0)) == 0:
        print(f'{osp.basename(sys.argv[0])}: {message}', file=sys.stderr)


def _without_gpus(cfg):
    """Processes on the CPU: mmengine's own launcher asks for a GPU, whatever the backend."""
    torch.distributed.init_process_group('gloo')
    if 'FSDP' in cfg.get('strategy', {}).get('type', ''):
        cfg.strategy.model_wrapper = {'type': 'MMFullyShardedDataParallel', **(cfg.strategy.get('model_wrapper') or {}),
                                      'device_id': 'cpu'}
    cfg.model_wrapper_cfg = {'type': 'MMDistributedDataParallel', **(cfg.get('model_wrapper_cfg') or {}),
                             'device_ids': None}
