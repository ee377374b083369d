"""What udl-train and udl-test share: upstream's pipelines, run from here, with checked options and a readable end."""
import argparse
import contextlib
import copy
import errno
import importlib
import os
import sys
import tempfile
from os import path as osp
from pathlib import Path
from urllib.error import URLError

from udl_plugin.config.completion import complete_options
from udl_plugin.config.cross_checks import checks_done, network_errors, validate_options
from udl_plugin.config.problems import OptionError, format_errors, get_errors
from udl_plugin.config.schema import validate_file
from udl_plugin.config.yaml_loader import OptionFile, parse_override
from udl_plugin.errors import UserError, raise_errors
from udl_plugin.plugin import install_import_hook
from udl_plugin.training import signals
from udl_plugin.training.launch_env import LAUNCHERS, check_launcher, is_rank_zero
from udl_plugin.training.patched import Session
from udl_plugin.training.resumable_loader import DataError
from udl_plugin.training.resume import load_resume_state
from udl_plugin.utils.atomic_io import atomic_write

# None: of an error that upstream makes itself
NO_ROOM = (None, errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, getattr(errno, 'EDQUOT', errno.ENOSPC))

install_import_hook()  # here, not in a function: data loading workers of a distributed training import this module afresh


def run(module_name, pipeline_name):
    """Runs a pipeline of BasicSR with the command line's arguments; results go below the current folder.

    Names that the pipeline calls are replaced in its module, so that everything is checked before any folder is made or
    renamed: `parse_options`, and in training `load_resume_state`, which upstream cannot do without a GPU. What upstream
    runs as code, in the yml and in `--force_yml`, is plain data here.

    Args:
        module_name (str): `basicsr.train` or `basicsr.test`.
        pipeline_name (str): The function in it.

    Returns:
        int: Exit status: 0; 2 where the input was wrong, and stderr says all that is; 1 where nothing is finite; 128 +
            the number of the signal that ended it.
    """
    args = _arguments()
    with signals.raised():
        try:
            return _run(args, module_name, pipeline_name)
        except signals.Interrupted as err:  # while it began, or ended by itself
            return _end(args, f'ended by {err}.', 128 + err.signal)


def _run(args, module_name, pipeline_name):
    module, document = importlib.import_module(module_name), None

    def parse_options(root_path, is_train):
        nonlocal document
        check_launcher(args.launcher)
        overrides = [parse_override(text) for text in args.force_yml]
        try:
            document = OptionFile(args.opt, overrides)
        except UserError as err:
            raise err if str(err).startswith('--force_yml') else UserError(f'-opt: {err}') from err
        if not args.no_check:
            _check_yml(document, is_train, args.auto_resume)
        opt, upstream_args = _parse(upstream['parse_options'], args, document, root_path, is_train)
        if not (is_train or args.no_check):
            _check(opt)
        return opt, upstream_args

    def resume(opt):
        if args.no_check:
            found = load_resume_state(opt)
        else:
            found, problems = _resume(opt)  # first: it says which checkpoint the network starts from
            _check(opt, problems)
        root = Path(opt['path']['experiments_root']).resolve()
        if found[0] is None and root in Path(args.opt).resolve().parents:
            raise UserError(f"-opt: '{args.opt}' is in the folder of the training that it names, which gets another "
                             'name when a new one begins. Copy it to elsewhere, or go on with --auto_resume.')
        return found

    def copy_opt_file(opt_file, experiments_root):
        if not is_rank_zero(args.launcher):
            return
        with tempfile.TemporaryDirectory() as folder:  # upstream writes in place, and not onto the file itself
            upstream['copy_opt_file'](opt_file, folder)
            content = Path(folder, osp.basename(opt_file)).read_text(encoding='utf-8')
        atomic_write(Path(experiments_root, osp.basename(opt_file)), (_overrides(args) + content).encode())

    def end(message, status, own=False):
        signals.settle()
        return _end(args, f'{message}{session.save()}', status, own)

    upstream = {name: getattr(module, name) for name in ('parse_options', 'copy_opt_file') if hasattr(module, name)}
    ours = {'parse_options': parse_options, 'copy_opt_file': copy_opt_file}
    with _replaced(module, **{name: ours[name] for name in upstream}), Session(module, resume) as session, \
            checks_done() if args.no_check else contextlib.nullcontext():
        try:
            getattr(module, pipeline_name)(os.getcwd())
        except signals.Interrupted as err:
            return end(f'ended by {err}.', 128 + err.signal)
        except UserError as err:
            return end(format_errors(get_errors(err), document), 2, isinstance(err, DataError))
        except FloatingPointError as err:
            return _end(args, err, 1)
        except OSError as err:
            return end(_told_of_system(err), 2)
        except RuntimeError as err:
            reason = session.explain(err)
            if reason is None:
                raise
            return end(reason, 2)
    return 0


def _end(args, message, status, own=False):
    """Says why, in the process that speaks for all, or `own`, of this process alone; returns the exit status."""
    if own or is_rank_zero(args.launcher):
        print(f'{osp.basename(sys.argv[0])}: {message}', file=sys.stderr)
    return status


def _arguments():
    """BasicSR's arguments, and ours."""
    parser = argparse.ArgumentParser()
    parser.add_argument('-opt', required=True, metavar='FILE', help='the yml')
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none')
    parser.add_argument('--auto_resume', action='store_true', help='go on from the last state of this experiment')
    parser.add_argument('--debug', action='store_true', help="BasicSR's trial of a few iterations")
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    parser.add_argument('--force_yml', nargs='+', action='extend', default=[], metavar='KEY:KEY=VALUE',
                        help='options in place of those in the yml, such as train:ema_decay=0.999')
    parser.add_argument('--no-check', action='store_true', help='let all options pass, as BasicSR does')
    return parser.parse_args()


def _parse(parse_options, args, document, root_path, is_train):
    """Upstream's `parse_options`, which is shown no overrides: it would run them as code."""
    class Loaded:
        def __init__(self, stream):
            pass

        def get_single_data(self):
            return copy.deepcopy(document.data)

        def dispose(self):
            pass

    from basicsr.utils import options
    own = [sys.argv[0], '-opt', args.opt, '--launcher', args.launcher, '--local_rank', str(args.local_rank),
           *['--auto_resume'] * args.auto_resume, *['--debug'] * args.debug]
    try:
        with _replaced(sys, argv=own), _replaced(options, ordered_yaml=lambda: (Loaded, None)):
            return parse_options(root_path, is_train=is_train)
    except KeyError as err:  # --no-check
        raise UserError(f'{err.args[0]}: is missing in the yml.') from err


def _check_yml(document, is_train, auto_resume):
    """Refuses a yml with problems of its own, together with those of data and checkpoints."""
    known = [*document.errors, *validate_file(document.data, is_train)]
    if known:
        opt = complete_options(document.data, os.getcwd(), is_train, auto_resume)
        if is_train:
            _, known = _resume(opt, known)
        _check(opt, known)


def _resume(opt, known=()):
    """What `load_resume_state` gives, and the problems."""
    try:
        return load_resume_state(opt), known
    except UserError as err:
        return (None, []), [*known, OptionError(('path', 'resume_state'), str(err).removeprefix(
            'path: resume_state: '))]
    except Exception:
        if not known:
            raise
        return (None, []), known  # it stumbled over one of them


def _check(opt, known=()):
    errors = validate_options(opt, known)
    raise_errors([*errors, *network_errors(opt, errors)])


def _told_of_system(err):
    """An OSError: a full disk, mostly; upstream's "Failed in writing images." too."""
    said = str(err).rstrip('.')
    if isinstance(err, URLError):
        return f'What an option asks for, such as the VGG of perceptual_opt, cannot be downloaded: {said}.'
    return f'{said}: is there room, and leave to write?' if err.errno in NO_ROOM else f'{said}.'


def _overrides(args):
    """The head of an experiment's copy of the yml: what was not as below."""
    if not args.force_yml:
        return ''
    lines = ['# With --force_yml, in place of what is below:', *(f'#   {text}' for text in args.force_yml), '', '']
    return '\n'.join(lines)


@contextlib.contextmanager
def _replaced(module, **names):
    """Gives names of a module other values, for the time of the block."""
    before = {name: getattr(module, name) for name in names}
    vars(module).update(names)
    try:
        yield
    finally:
        vars(module).update(before)
