"""What udl-train and udl-test share: upstream's pipelines, run from here, with checked options and a readable end."""
import importlib
import os
import re
import sys
from os import path as osp

import yaml

from udl_plugin.autoload import install
from udl_plugin.checkpoints import load_tensors
from udl_plugin.errors import InputError
from udl_plugin.options import check_network, check_options

install()  # here, not in a function: data loading workers of a distributed training import this module afresh


def run(module_name, pipeline_name):
    """Runs a pipeline of BasicSR with the command line's arguments; results go below the current folder.

    Names that the pipeline calls are replaced in its module, so that everything is checked before any folder is made or
    renamed: `parse_options`, and in training `load_resume_state`, which upstream cannot do without a GPU.

    Args:
        module_name (str): `basicsr.train` or `basicsr.test`.
        pipeline_name (str): The function in it.

    Returns:
        int: Exit status: 0, or 2 where the input was wrong; then one line on stderr says why.
    """
    module = importlib.import_module(module_name)
    upstream_parse_options = module.parse_options

    def parse_options(root_path, is_train):
        opt, args = _read(upstream_parse_options, root_path, is_train)
        if not is_train:
            _check(opt)
        return opt, args

    def load_resume_state_and_check(opt):
        state = load_resume_state(opt)  # first: it says which checkpoint the network starts from
        _check(opt)
        return state

    module.parse_options = parse_options
    if hasattr(module, 'load_resume_state'):
        module.load_resume_state = load_resume_state_and_check
    try:
        getattr(module, pipeline_name)(os.getcwd())
    except InputError as err:
        print(f'{osp.basename(sys.argv[0])}: {err}', file=sys.stderr)
        return 2
    return 0


def _check(opt):
    check_options(opt)
    check_network(opt)


def _read(parse_options, root_path, is_train):
    try:
        return parse_options(root_path, is_train=is_train)
    except OSError as err:
        raise InputError(f"-opt: '{err.filename}': {err.strerror}.") from err
    except KeyError as err:
        raise InputError(f'{err.args[0]}: is missing in the yml.') from err
    except yaml.YAMLError as err:
        raise InputError(f'-opt: {err}') from err


def load_resume_state(opt):
    """The training state that `--auto_resume` or `path: resume_state` asks for, or None.

    As `basicsr/train.py` has it, but read on the CPU: the optimizer moves its state to the parameters' device.

    Raises:
        InputError: the file is missing or not one of tensors.
    """
    from basicsr.utils import check_resume, scandir
    path = opt['path'].get('resume_state')
    if opt['auto_resume']:
        folder = opt['path']['training_states']
        names = list(scandir(folder)) if osp.isdir(folder) else []
        iterations = [int(name[:-6]) for name in names if re.fullmatch(r'\d+\.state', name)]
        path = osp.join(folder, f'{max(iterations)}.state') if iterations else None
        opt['path']['resume_state'] = path
    if not path:
        return None
    try:
        state = load_tensors(path)
    except InputError as err:
        raise InputError(f'path: resume_state: {err}') from err.__cause__
    if not isinstance(state, dict) or not {'epoch', 'iter', 'optimizers', 'schedulers'} <= state.keys():
        raise InputError(f"path: resume_state: '{path}' is not a training state; those are in training_states/.")
    check_resume(opt, state['iter'])
    return state
