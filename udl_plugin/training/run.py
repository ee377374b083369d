"""Runs of udl-train and udl-test: options, checks, and how they end. Their arguments are in udl_plugin/cli/train.py."""
from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import path as osp
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from basicsr.utils import set_random_seed
from basicsr.utils.dist_util import get_dist_info, init_dist
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY

from udl_plugin.archs.outputs import provides_output
from udl_plugin.config.completion import complete_options
from udl_plugin.config.cross_checks import checks_done, network_errors, validate_options
from udl_plugin.config.problems import format_errors, get_errors, get_section
from udl_plugin.config.schema import validate_file
from udl_plugin.config.yaml_loader import OptionFile, parse_override
from udl_plugin.errors import UserError, raise_errors
from udl_plugin.losses.uncertainty_loss import UDL
from udl_plugin.training.launch_env import check_launcher, is_rank_zero
from udl_plugin.training.loop import StoppedEarly, test, train
from udl_plugin.training.resumable_loader import DataError
from udl_plugin.training.resume import find_resume_state
from udl_plugin.utils.atomic_io import atomic_write
from udl_plugin.utils.user_imports import get_imports, import_user_modules

# None: of an OSError that BasicSR raises without one
NOT_WRITABLE = (None, errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, getattr(errno, 'EDQUOT', errno.ENOSPC))


@dataclass
class Arguments:
    """The command line of udl-train or udl-test, as its --help explains it."""

    opt: str
    launcher: str = 'none'
    auto_resume: bool = False
    debug: bool = False
    force_yml: Sequence[str] = ()
    imports: Sequence[str] = ()
    no_check: bool = False


def run(is_train: bool, args: Arguments) -> int:
    """Runs udl-train or udl-test. Results go below the current folder.

    Args:
        is_train: Train, or test.
        args: The command line.

    Returns:
        Exit status: 0; 2 for an error that a user can fix, reported on stderr; 1 if losses are not finite; 128 + the
        number of the signal that ended it.
    """
    option_file = None
    try:
        check_launcher(args.launcher)
        option_file = OptionFile(args.opt, [parse_override(text) for text in args.force_yml])
        import_user_modules(args.imports, '--import')
        import_user_modules(get_imports(option_file.data))
        opt, state, messages = _prepare(option_file, args, is_train)
        with checks_done():
            if is_train:
                train(opt, state, messages, functools.partial(_copy_option_file, args),
                      describe_step_2(option_file.data, args.opt) or describe_upscaling(option_file.data))
            else:
                test(opt, messages)
        return 0
    except KeyboardInterrupt:
        return _report(args, 'ended by SIGINT.', 130)
    except StoppedEarly as err:
        resumable = f' Iteration {err.saved_iter} is saved; resume with --auto_resume.' if err.saved_iter else ''
        if err.signal_number:
            name = signal.Signals(err.signal_number).name
            return _report(args, f'ended by {name}.{resumable}', 128 + err.signal_number)
        assert err.__cause__ is not None
        return _report_error(args, err.__cause__, option_file, resumable)
    except Exception as err:
        return _report_error(args, err, option_file)


def _prepare(option_file: OptionFile, args: Arguments, is_train: bool) -> tuple[dict, dict | None, list[str]]:
    """Options as BasicSR's `parse_options` returns them, checked; the state to resume from, and messages for the log.

    Raises:
        UserErrors: everything that is wrong.
    """
    seed = option_file.data.get('manual_seed')
    data = {**option_file.data, 'dist': False, 'rank': 0, 'world_size': 1,
            'manual_seed': random.randint(1, 10000) if seed is None else seed}
    opt = complete_options(data, os.getcwd(), is_train, args.auto_resume, args.debug)
    opt['root_path'] = os.getcwd()
    errors: list[Any] = [] if args.no_check else [*option_file.errors, *validate_file(option_file.data, is_train)]
    if not errors:
        _start_process(opt, args.launcher)
    state: dict[str, Any] | None = None
    messages: list[str] = []
    try:
        if is_train:
            state, messages = find_resume_state(opt)
    except UserError as err:
        errors += get_errors(err)
    except Exception:
        if not errors:  # otherwise it is one of them that it failed over
            raise
    if not args.no_check:
        errors = validate_options(opt, errors, messages)
        if errors:  # otherwise the model is built next, and finds these
            errors += network_errors(opt, errors)
    raise_errors(errors)
    folder = Path(opt['path'].get('experiments_root', 'experiments'))  # none in a test
    if is_train and state is None and folder.resolve() in Path(args.opt).resolve().parents:
        raise UserError(f"-opt: '{args.opt}' lies in {osp.relpath(folder)}, which is renamed when a new training "
                        'starts. Copy the file out of it, or pass --auto_resume to continue.')
    return opt, state, messages


def _start_process(opt: dict[str, Any], launcher: str) -> None:
    """Joins the process group, seeds the generators and sets up cuDNN, as BasicSR does.

    Raises:
        UserError: several processes without a GPU.
    """
    opt['dist'] = launcher != 'none'
    if opt['dist']:
        if not torch.cuda.is_available():
            raise UserError(f'--launcher {launcher}: BasicSR trains with several processes on GPUs only, and PyTorch '
                            'finds none. On the CPU, start one process, without --launcher.')
        init_dist(launcher, **(opt.get('dist_params') or {} if launcher == 'slurm' else {}))
    opt['rank'], opt['world_size'] = get_dist_info()
    set_random_seed(opt['manual_seed'] + opt['rank'])
    torch.backends.cudnn.benchmark = True


def _copy_option_file(args: Arguments, folder: str) -> None:
    """Like BasicSR's `copy_opt_file`, but atomic, and also onto itself."""
    if is_rank_zero(args.launcher):
        header = f'# GENERATE TIME: {time.asctime()}\n# CMD:\n# {" ".join(sys.argv)}\n\n'
        atomic_write(Path(folder, osp.basename(args.opt)), header.encode() + Path(args.opt).read_bytes())


def describe_step_2(data: Mapping[str, Any], path: str) -> str:
    """The command for step 2, for the end of step 1; empty for other trainings.

    Args:
        data: Content of the option file of the training.
        path: Of this file. One beside it with step2 in its name, in place of step1, is the one for step 2.
    """
    loss = LOSS_REGISTRY.get((data['train'].get('pixel_opt') or {'type': 'L1Loss'})['type'])
    if not getattr(loss, 'trains_log_var', False) or issubclass(loss, UDL):  # JointUDL is one run
        return ''
    checkpoint, file = _latest_checkpoint(data), Path(path)
    step_2, start = file.with_name(file.name.replace('step1', 'step2')), None
    if step_2 != file and step_2.is_file():
        with contextlib.suppress(UserError):  # it may be unfinished; its own training reports that
            start = get_section(OptionFile(str(step_2)).data, 'path').get('pretrain_network_g')
    command = f'udl-train {step_2 if start else "STEP2.yml"}'
    if start != checkpoint:
        command += f' --force_yml path:pretrain_network_g={checkpoint}'
    return f'Step 1 is complete. For step 2: {command}'


def describe_upscaling(data: Mapping[str, Any]) -> str:
    """The command that upscales a photo, for the end of step 2 and of one run; empty for other trainings.

    Args:
        data: Content of the option file of the training.
    """
    loss = LOSS_REGISTRY.get((data['train'].get('pixel_opt') or {'type': 'L1Loss'})['type'])
    if not (isinstance(loss, type) and issubclass(loss, UDL)):
        return ''
    has_map = provides_output(ARCH_REGISTRY.get(data['network_g']['type']), 'log_var')
    return (f'Training is complete. To upscale a photo: udl-upscale photo.png out.png --model '
            f'{_latest_checkpoint(data)}{" --uncertainty" if has_map else ""}')


def _latest_checkpoint(data: Mapping[str, Any]) -> str:
    return f'experiments/{data["name"]}/models/net_g_latest.pth'


def _report_error(args: Arguments, err: BaseException, option_file: OptionFile | None,
                  resumable: str = '') -> int:
    """Reports an error that a user can fix, and raises every other one again."""
    if isinstance(err, FloatingPointError):
        return _report(args, str(err), 1)
    if isinstance(err, UserError):
        message = format_errors(get_errors(err), option_file)
    elif isinstance(err, URLError):
        message = f'A file that an option requires, such as the VGG of perceptual_opt, cannot be downloaded: {err}.'
    elif isinstance(err, OSError):
        message = str(err).rstrip('.') + '.'
        if err.errno in NOT_WRITABLE:
            message += ' Check free space and write permission.'
    elif args.launcher != 'none' and re.search('gloo|NCCL|by peer', str(err)):
        message = 'another process of the training ended and reported why; this one ends too.'
    else:
        raise err
    return _report(args, message + resumable, 2, isinstance(err, DataError))


def _report(args: Arguments, message: str, status: int, this_rank: bool = False) -> int:
    """Prints why, on rank 0 or for `this_rank` only; returns the exit status."""
    if this_rank or is_rank_zero(args.launcher):
        print(f'{osp.basename(sys.argv[0])}: {message}', file=sys.stderr)
    return status
