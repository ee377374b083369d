"""scripts/mm_train.py and scripts/mm_test.py: mmengine's `Runner` on a config, in the habit of OpenMMLab's tools.

A config is a Python file, and is run: take none from strangers.
"""
import argparse
import importlib.util
import os
import sys
from os import path as osp

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.fileio import register_backend
from mmengine.registry import RUNNERS
from mmengine.runner import CheckpointLoader, Runner

import udl_plugin.integrations.mmengine  # noqa: F401 (registers)
from udl_plugin.errors import UserError, raise_errors
from udl_plugin.integrations.mmengine.checkpoints import (
    AtomicLocalBackend,
    find_resume_checkpoint,
    load_file,
    remove_unfinished,
)
from udl_plugin.integrations.mmengine.configs import name_problems, section_problems, unknown_overrides
from udl_plugin.training.launch_env import LAUNCHERS, check_launcher, is_rank_zero


class _Options(DictAction):
    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            if '=' not in value:
                parser.error(f"{option_string}: '{value}' is not KEY=VALUE")
        super().__call__(parser, namespace, values, option_string)


def main():
    """`python -m udl_plugin.integrations.mmengine.launch train|test ...`; returns the exit status."""
    commands = {'train': train, 'test': test}
    if sys.argv[1:2] and sys.argv[1] in commands:
        return commands[sys.argv.pop(1)]()
    print('usage: python -m udl_plugin.integrations.mmengine.launch {train,test} CONFIG ... (--help after either)',
          file=sys.stderr)
    return 2


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
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none')
    parser.add_argument('--cfg-options', nargs='+', action=_Options, default={}, metavar='KEY=VALUE',
                        help='options in place of those of the config: train_dataloader.batch_size=8')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def _for_training(cfg, args):
    _refuse_without(cfg, 'model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
    resumed = args.resume
    if resumed == 'auto' or (cfg.get('resume') is True and not (resumed or cfg.get('load_from'))):
        resumed, passed_over = find_resume_checkpoint(cfg)
        remove_unfinished(cfg)
        for problem in passed_over:
            _tell(args, f'passed over: {problem}')
    elif resumed:
        _refuse_missing(resumed, '--resume')
    if resumed:  # else it begins, with load_from
        cfg.resume, cfg.load_from = True, resumed
    else:
        _refuse_missing(cfg.get('load_from'), 'load_from')
    if args.amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
    if cfg.optim_wrapper.get('type') == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise UserError(f"{'--amp' if args.amp else 'optim_wrapper: type: AmpOptimWrapper'}: mmengine has it on GPUs "
                         "alone, and there is none here; BasicSR's side has it on the CPU too.")
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UserError(f'--auto-scale-lr: {args.config} has no auto_scale_lr = dict(base_batch_size=...).')
        cfg.auto_scale_lr.enable = True
    _check_strategy(cfg, args)


def _check_strategy(cfg, args):
    kind = (cfg.get('strategy') or {}).get('type', 'SingleDeviceStrategy')
    if args.launcher == 'none' and kind != 'SingleDeviceStrategy':
        raise UserError(f'strategy: type: {kind} is for several processes: torchrun --nproc_per_node=4 '
                         f'-m udl_plugin.integrations.mmengine.launch train {args.config} --launcher pytorch '
                         '(docs/scaling.md).')
    if kind == 'DeepSpeedStrategy' and importlib.util.find_spec('deepspeed') is None:
        raise UserError(f'strategy: type: {kind} needs deepspeed: pip install deepspeed==0.18.0 (docs/scaling.md).')


def _for_test(cfg, args):
    _refuse_without(cfg, 'model', 'test_dataloader', 'test_cfg', 'test_evaluator')
    _refuse_missing(args.checkpoint, 'checkpoint')
    cfg.load_from = args.checkpoint
    if args.launcher == 'none':  # a whole network in one process, however it was trained
        cfg.pop('runner_type', None)
        cfg.pop('strategy', None)


def _refuse_without(cfg, *names):
    raise_errors(f'{name}: is missing.' for name in names if not cfg.get(name))


def _refuse_missing(path, what):
    if not path:
        return
    if '://' in path:
        raise UserError(f"{what}: '{path}' is no file: download it first. (mmengine would execute what it downloads.)")
    path = osp.expanduser(path)
    if osp.isdir(path):
        raise UserError(f"{what}: '{path}' is a folder; name a file in it.")
    if not osp.isfile(path):
        raise UserError(f"{what}: there is no file '{path}' (seen from {osp.abspath('.')}).")


def _run(parser, arguments, prepare, start):
    args, started = parser.parse_args(arguments), False
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    try:
        check_launcher(args.launcher)
        cfg = _read(args)
        prepare(cfg, args)
        raise_errors(name_problems(cfg))
        if cfg.get('default_scope') in (None, 'mmengine'):  # names of other scopes are known to their packages alone
            raise_errors(section_problems(cfg))
        cfg.custom_hooks = cfg.get('custom_hooks') or []
        if not any(hook.get('type') == 'NetworkCheckpointHook' for hook in cfg.custom_hooks):
            cfg.custom_hooks.append({'type': 'NetworkCheckpointHook'})  # else mmengine loads what fits, if anything
        CheckpointLoader.register_scheme('', load_file, force=True)
        register_backend('local', AtomicLocalBackend, force=True, prefixes='')
        if args.launcher == 'pytorch' and not torch.cuda.is_available():
            _without_gpus(cfg)
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        started = True
        start(runner)
    except UserError as err:
        told = str(err).rpartition(f'{UserError.__module__}.{UserError.__name__}: ')[2]  # of a loading process
        _tell(args, told.strip(), own=started)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def _read(args):
    """The config, with what the command line has in its place."""
    _refuse_missing(args.config, 'config')
    if not args.config.endswith('.py'):
        raise UserError(f"config: '{args.config}' is no config of mmengine, a Python file such as "
                         'options/mmengine/demo_udl_step1.py; udl-train -opt takes a yml.')
    try:
        cfg = Config.fromfile(args.config)
    except FileNotFoundError as err:  # of a base
        raise UserError(f'config: {args.config}: {err}') from err
    raise_errors(unknown_overrides(args.cfg_options))
    try:
        cfg.merge_from_dict(args.cfg_options)
    except (AttributeError, KeyError, TypeError) as err:
        raise UserError(f'--cfg-options: cannot be put into {args.config}: {err.args[0]}') from err
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or osp.join(
        'work_dirs', osp.splitext(osp.basename(args.config))[0])
    return cfg


def _tell(args, message, own=False):
    """In a line on stderr; of several processes the first alone, but for what one may meet on its `own`."""
    if own or is_rank_zero(args.launcher):
        print(f'{osp.basename(sys.argv[0])}: {message}', file=sys.stderr)


def _without_gpus(cfg):
    """Processes on the CPU: mmengine's own launcher asks for a GPU, whatever the backend."""
    torch.distributed.init_process_group('gloo')
    if 'FSDP' in (cfg.get('strategy') or {}).get('type', ''):
        cfg.strategy.model_wrapper = {'type': 'MMFullyShardedDataParallel', **(cfg.strategy.get('model_wrapper') or {}),
                                      'device_id': 'cpu'}
    cfg.model_wrapper_cfg = {'type': 'MMDistributedDataParallel', **(cfg.get('model_wrapper_cfg') or {}),
                             'device_ids': None}


if __name__ == '__main__':
    sys.exit(main())
