"""Validates options against each other, the data and the checkpoints, before anything is built.

`validate_options` is the one validation; what each option may be by itself is in `udl_plugin/config/schema.py`.
"""
from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from os import path as osp
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY, METRIC_REGISTRY

from udl_plugin.archs.build import build_network
from udl_plugin.archs.outputs import TEACHER_OUTPUTS, provides_output
from udl_plugin.archs.padding import get_required_multiple
from udl_plugin.archs.wrapping import base_config, sub_state_dict
from udl_plugin.checkpoints.safe_load import load_checkpoint
from udl_plugin.checkpoints.state_dict import DEFAULT_KEY, fingerprint, load_matching_state_dict
from udl_plugin.config.class_options import is_udl_model, scale_key
from udl_plugin.config.dataset_checks import check_maps, check_pairs, too_few_images
from udl_plugin.config.problems import ErrorCollector, KeyPath, OptionError, errors_at, get_section
from udl_plugin.config.schema import (
    CACHED,
    LOADER_OPTIONS,
    PAIRS,
    WITH_MAPS,
    keeps_images_on_device,
    reads_maps,
    validate_dataset,
    validate_sections,
)
from udl_plugin.data.map_format import read_metadata
from udl_plugin.errors import UserError, UserErrors, lookup_class, raise_errors
from udl_plugin.losses.build import build_loss

Opt = Mapping[str, Any]
PROVIDERS = {
    'log_var': 'EDSRVar, DPDNNVar and WithVariance do in step 1, EDSRTwo, DPDNNTwo and TwoStep in step 2',
    'frozen_sr': 'EDSRTwo, DPDNNTwo and TwoStep do, the networks of step 2',
    **dict.fromkeys(TEACHER_OUTPUTS, 'a teacher does, any SR network: train.teacher: {path: FILE.pth} (with mmengine: '
                                     'teacher of the model)'),
}
PIXEL_OPT: KeyPath = ('train', 'pixel_opt')
RESUME_STATE: KeyPath = ('path', 'resume_state')
PRETRAINED: KeyPath = ('path', 'pretrain_network_g')
_checked: ContextVar[bool] = ContextVar('options are checked', default=False)


# ---- entry points


@contextlib.contextmanager
def checks_done() -> Iterator[None]:
    """In the block, `check_options` accepts everything: the options are validated already, or shall not be."""
    token = _checked.set(True)
    try:
        yield
    finally:
        _checked.reset(token)


def check_options(opt: Opt) -> None:
    """Raises all errors of options as `UserErrors`; see `validate_options`."""
    if not _checked.get():
        raise_errors(validate_options(opt))


def validate_options(opt: Opt, known: Iterable[Any] | None = None, notes: list[str] | None = None) -> list[Any]:
    """All errors of options, of the data that they name, and of how they fit together.

    The network is not built and `path.pretrain_network_g` is not read, which the model does next; see `network_errors`.

    Args:
        opt: As BasicSR's `parse_options` or `complete_options` returns it, or a dict made by hand.
        known: The errors of the option file as it is written; see `validate_file`. Checks of options that they are
            about are skipped. None: there is no file; then the options that a model reads are validated, of which most
            may be missing.
        notes: Lines for the log are added to it: what is no error, and not obvious.

    Returns:
        OptionErrors, `known` first; and messages of errors that are about no option.
    """
    notes = [] if notes is None else notes
    errors = ErrorCollector(validate_sections(opt) if known is None else known)
    for phase, dataset in get_section(opt, 'datasets').items():
        if isinstance(dataset, Mapping):
            path = ('datasets', phase)
            errors.check(_check_data, opt, dataset, path, notes, requires=[
                ('scale',), (*path, 'type'), (*path, 'io_backend', 'type')])
    errors.check(_check_metrics, opt, notes, requires=[('val', 'metrics')])
    network = None
    if not errors.has_error_at('network_g', 'type'):
        network = lookup_class(ARCH_REGISTRY, opt['network_g']['type'])
    loss = _build_loss(opt, errors)
    errors.check(_check_gpus, opt)
    errors.check(_check_accumulation, opt)
    errors.check(_check_loss, opt, loss, requires=[PIXEL_OPT])
    if getattr(loss, 'head_loss', None) and not get_section(opt, 'network_g').get('detach_features'):
        notes.append(f'train.pixel_opt: {type(loss).__name__}: without network_g.detach_features: true, the variance '
                     'head shapes the features too.')
    for check in (_check_channels, _check_scale):
        errors.check(check, opt, requires=[('network_g', 'type'), ('network_g', 'backbone', 'type')])
    if is_udl_model(opt.get('model_type')) and network is not None:
        given = ['log_var'] if reads_maps(get_section(opt, 'datasets', 'train')) else []
        has_teacher = bool(get_section(opt, 'train').get('teacher'))
        errors.check(check_required_outputs, network, loss, [*given, *(TEACHER_OUTPUTS if has_teacher else ())])
        if has_teacher and not set(TEACHER_OUTPUTS) & set(getattr(loss, 'required_outputs', ())):
            errors.extend([OptionError(('train', 'teacher'), 'no loss uses it; write source: teacher_residual or '
                                                             'teacher_error in train.pixel_opt, or delete it.')])
        errors.check(_check_log_var_used, opt, network)
        errors.check(_check_start, opt, network, requires=[RESUME_STATE])
    if known is not None or not is_udl_model(opt.get('model_type')):  # a study trains its networks later
        errors.check(_check_files, opt, requires=[RESUME_STATE])
    return errors.errors


def network_errors(opt: Opt, known: Iterable[Any] = ()) -> list[Any]:
    """Errors that only show when the network is built and `path.pretrain_network_g` is read, in addition to `known`.

    For the complete list of errors once there are some, and for the reason why a model could not be built.

    Args:
        opt: As for `validate_options`.
        known: What that returned.
    """
    errors = ErrorCollector(known)
    number = len(errors.errors)
    if not errors.has_error_within('network_g'):
        errors.check(check_network, opt, requires=[
            RESUME_STATE, PRETRAINED, ('path', 'param_key_g'), ('path', 'strict_load_g')])
    return errors.errors[number:]


def check_network(opt: Opt) -> None:
    """Builds `network_g`, and for UDLModel and SRModel reads `path.pretrain_network_g` and matches it with the network.

    The state of the random number generators does not change.

    Raises:
        UserErrors: the network cannot be built, no size of images fits it, the checkpoint cannot be read or does not
            match, or the cached maps are of another network.
    """
    with torch.random.fork_rng(devices=[]), errors_at('network_g'):
        net = build_network(opt['network_g'])
        if is_udl_model(opt['model_type']):
            get_required_multiple(opt['network_g'])  # now, not at the first validation
    path = opt['path']
    if path.get('pretrain_network_g') is not None and (
            opt['model_type'] == 'SRModel' or is_udl_model(opt['model_type'])):
        resumed = is_resumed(opt)
        read: Callable[[Any], Any] = functools.lru_cache(maxsize=1)(load_checkpoint)
        with errors_at(*RESUME_STATE if resumed else PRETRAINED):
            state_dict, key, _ = load_matching_state_dict(
                net, path['pretrain_network_g'], get_param_key(opt), path.get('strict_load_g', True), read,
                opt['network_g'], resumed)
            content = read(path['pretrain_network_g'])
            names = content if key is None else content[key]
            if opt['model_type'] == 'SRModel' and any('_orig_mod.' in name for name in names):
                raise UserError(f"'{path['pretrain_network_g']}' has torch.compile's names, _orig_mod..., which "
                                'SRModel cannot load; write model_type: UDLModel.')
        check_map_fingerprint(opt, sub_state_dict(state_dict, 'var_net'))


def is_resumed(opt: Opt) -> bool:
    """Whether `path.pretrain_network_g` is the network of a training state, as BasicSR's `check_resume` sets it."""
    path = opt['path']
    return bool(opt['is_train'] and path.get('resume_state')) and 'network_g' not in (
        path.get('ignore_resume_networks') or ())


def get_param_key(opt: Opt) -> str | None:
    """`path.param_key_g`. By default the moving average, if the file has one; in a resume the weights that it is of."""
    return opt['path'].get('param_key_g', 'params' if is_resumed(opt) else DEFAULT_KEY)


def check_data(phase: str, scale: int, dataset_opt: Opt) -> None:
    """Checks one entry of `datasets` and its data, for a data loader that is not BasicSR's.

    Args:
        phase: train, val or test.
        scale: Of the network.
        dataset_opt: As in an option file, without the options of BasicSR's data loader.

    Raises:
        UserErrors: all that is wrong.
    """
    path = ('datasets', phase)
    raise_errors(OptionError((*path, key), "is an option of BasicSR's data loader; set it in the one that is used.")
                 for key in LOADER_OPTIONS & dataset_opt.keys())
    loader = {'num_worker_per_gpu': 0, 'batch_size_per_gpu': 1} if phase == 'train' else {}
    errors = ErrorCollector(validate_dataset(phase, {**dataset_opt, **loader}, phase != 'test'))
    errors.check(_check_data, {}, {**dataset_opt, 'phase': phase, 'scale': scale}, path, [], requires=[
        (*path, 'type'), (*path, 'io_backend', 'type')])
    raise_errors(errors.errors)


def check_map_fingerprint(opt: Opt, var_state_dict: Mapping[str, torch.Tensor]) -> None:
    """Checks that cached maps are of the frozen network, not of step 1 before it was trained again, for example.

    Args:
        opt: As for `validate_options`.
        var_state_dict: Of the frozen network. Empty if there is none: then maps of any network are accepted.

    Raises:
        UserErrors: names the LMDB and the network that it is of.
    """
    root = get_section(opt, 'datasets', 'train').get('dataroot_uncertainty')
    if root is None or not var_state_dict:
        return
    metadata = read_metadata(root)
    if metadata['fingerprint'] != fingerprint(var_state_dict):
        raise UserErrors([OptionError(('datasets', 'train', 'dataroot_uncertainty'), (
            f"the maps in '{root}' are not of the network in path.pretrain_network_g, but of {metadata['model']}, "
            f"{metadata['param_key']}, as it was then. Have udl-prepare uncertainty --force write them again, or set "
            'network_g to a base network, which accepts maps of any network.'))])


def metrics_of_maps(opt: Opt) -> dict[str, Mapping[str, Any]]:
    """Names and options of those `val.metrics` whose function takes `log_var`."""
    return {name: metric for name, metric in get_section(opt, 'val', 'metrics').items()
            if metric['type'] in METRIC_REGISTRY
            and 'log_var' in inspect.signature(METRIC_REGISTRY.get(metric['type'])).parameters}


# ---- checks. Each yields errors


def _build_loss(opt: Opt, errors: ErrorCollector) -> Any:
    """What `build_loss` returns for train.pixel_opt; None if there is none, or if it is wrong."""
    loss_opt = get_section(opt, 'train', 'pixel_opt')
    if not loss_opt or errors.has_error_within(*PIXEL_OPT):
        return None
    try:
        return build_loss(loss_opt)
    except UserError as err:
        errors.extend([OptionError(PIXEL_OPT, str(err))])
        return None


def _check_loss(opt: Opt, loss: Any) -> Iterator[OptionError]:
    """Yields an error if the model gives the loss too little, or the data set cached maps that it does not read."""
    outputs = getattr(loss, 'required_outputs', ())
    if outputs and opt['model_type'] == 'SRModel':
        yield OptionError(('model_type',), f'SRModel does not pass {" and ".join(outputs)} to losses, which '
                                           f'train.pixel_opt: {type(loss).__name__} requires; write UDLModel.')
    dataset = get_section(opt, 'datasets', 'train')
    if reads_maps(dataset) and not ('log_var' in outputs and getattr(loss, 'trains_log_var', False) is False):
        advice = 'Delete dataroot_uncertainty.' if dataset['type'] == CACHED else f'Write type: {PAIRS}.'
        yield OptionError(('datasets', 'train', 'type'), f'{dataset["type"]}: no loss weights by its maps, as '
                          f'train.pixel_opt: type: UDL does. {advice}')
    if keeps_images_on_device(dataset) and opt['model_type'] == 'SRModel':
        yield OptionError(('datasets', 'train', 'cache'), 'device requires model_type: UDLModel, which cuts the '
                                                          'patches; write that, or cache: host.')


def _check_files(opt: Opt) -> Iterator[OptionError]:
    """Files that BasicSR would find missing after it has made its folders."""
    for key, value in get_section(opt, 'path').items():
        if key.startswith('pretrain_network') and isinstance(value, str) and not osp.isfile(value):
            yield OptionError(('path', key), f"there is no file '{value}' (seen from {osp.abspath('.')}).")


def _check_data(opt: Opt, dataset_opt: Opt, path: KeyPath, notes: list[str]) -> Iterator[OptionError]:
    kind, with_maps = dataset_opt.get('type'), reads_maps(dataset_opt)
    if dataset_opt.get('dataroot_uncertainty') is not None and not with_maps:
        yield OptionError((*path, 'dataroot_uncertainty'), f'is only read with type: {WITH_MAPS}; write that.')
    if dataset_opt.get('cache') is not None and kind != CACHED:
        yield OptionError((*path, 'cache'), f'is only read with type: {CACHED}; write that.')
    if kind == CACHED:
        if dataset_opt['phase'] != 'train' or dataset_opt['io_backend']['type'] != 'lmdb':
            yield OptionError((*path, 'type'), f'{CACHED} is for training from LMDBs; write {PAIRS}.')
        for key in ('mean', 'std', 'color'):
            if dataset_opt.get(key) is not None:
                yield OptionError((*path, key), f'is not supported by type: {CACHED}; write {PAIRS}.')
    if kind in (PAIRS, WITH_MAPS, CACHED):
        pairs = check_pairs(dataset_opt, path)  # reads each index once
        if pairs.deep:
            notes.append(f'{".".join(path)}: {pairs.deep} has more than 8 bits per channel; BasicSR reads images as 8 '
                         'bits.')
        if with_maps:
            check_maps(dataset_opt, pairs, path)
        if path == ('datasets', 'train'):
            yield from _check_batch(opt, dataset_opt, pairs.number)


def _check_metrics(opt: Opt, notes: list[str]) -> Iterator[OptionError]:
    """Yields an error if metrics compare with a ground truth that a data set lacks; notes which are not on Y."""
    sets = {phase: dataset for phase, dataset in get_section(opt, 'datasets').items()
            if phase != 'train' and isinstance(dataset, Mapping)}
    parameters = {name: inspect.signature(METRIC_REGISTRY.get(metric['type'])).parameters for name, metric
                  in get_section(opt, 'val', 'metrics').items() if metric['type'] in METRIC_REGISTRY}
    comparing = [name for name in parameters if 'img2' in parameters[name]]
    for phase, dataset in sets.items():
        if dataset.get('type') == 'SingleImageDataset' and comparing:
            yield OptionError(('datasets', phase, 'type'), (
                f'SingleImageDataset has no ground truth, which val.metrics.{comparing[0]} requires; delete '
                f'val.metrics, or write type: {PAIRS}.'))
    if any(dataset.get('color') != 'y' for dataset in sets.values()):
        notes += [f'val.metrics.{name}: on RGB. Papers report it on Y: test_y_channel: true.'
                  for name, known in parameters.items()
                  if 'test_y_channel' in known and not opt['val']['metrics'][name].get('test_y_channel')]


def _check_batch(opt: Opt, dataset_opt: Opt, images: int) -> Iterator[OptionError]:
    batch = dataset_opt.get('batch_size_per_gpu')
    if type(batch) is not int:
        return
    if not opt.get('dist') and type(opt.get('num_gpu')) is int:
        batch *= max(1, opt['num_gpu'])
    share = dataset_opt.get('dataset_enlarge_ratio', 1) / (opt['world_size'] if opt.get('dist') else 1)
    if math.ceil(images * share) < batch:
        yield too_few_images(math.ceil(images * share), batch)


def _check_gpus(opt: Opt) -> Iterator[OptionError]:
    num_gpu, available = opt.get('num_gpu'), torch.cuda.device_count()
    if opt.get('dist') or type(num_gpu) is not int:
        return
    if num_gpu > available:
        has = f'{available} of them' if available else 'none that PyTorch can use'
        yield OptionError(('num_gpu',), f'{num_gpu}: this machine has {has}; write {available}, or auto.')
    for section, key in itertools.product(('train', 'val'), ('amp', 'compile')):
        value = get_section(opt, section).get(key)
        if value and num_gpu > 1:  # DataParallel, of several GPUs in one process, knows neither
            yield OptionError((section, key), f'{value} on {num_gpu} GPUs requires a process for each: torchrun '
                              f'--nproc_per_node={num_gpu} -m udl_plugin.train -opt FILE.yml --launcher pytorch. Or '
                              'use one GPU.')


def _check_accumulation(opt: Opt) -> Iterator[OptionError]:
    train, path = get_section(opt, 'train'), ('train', 'accumulate')
    accumulate, batch = train.get('accumulate') or 1, get_section(opt, 'datasets', 'train').get('batch_size_per_gpu')
    if type(batch) is int and batch % accumulate:
        yield OptionError(path, f'{accumulate}: a batch is split into this many equal parts; write a divisor of '
                                f'batch_size_per_gpu: {batch}.')
    if accumulate > 1 and get_section(train, 'pixel_opt').get('reduction') == 'sum':
        yield OptionError(path, 'the parts are averaged, and pixel_opt.reduction: sum is not a mean; write mean.')
    if accumulate > 1 and get_section(train, 'perceptual_opt').get('criterion') == 'fro':
        yield OptionError(path, 'the parts are averaged, and perceptual_opt.criterion: fro is a norm of the complete '
                                'batch; write l1.')


def _check_start(opt: Opt, network: Any) -> Iterator[OptionError]:
    """A missing checkpoint, where the network cannot do without one."""
    if opt['path'].get('pretrain_network_g') is None:
        if getattr(network, 'trains_log_var', None) is False:
            yield OptionError(PRETRAINED, f'is missing. {network.__name__} starts from a checkpoint of step 1 (train '
                                          'that first) or of step 2.')
        elif not opt['is_train']:
            yield OptionError(PRETRAINED, 'is missing: there is nothing to test.')


def _check_log_var_used(opt: Opt, network: Any) -> Iterator[OptionError]:
    if provides_output(network, 'log_var'):
        return
    reason = f'network_g: {network.__name__} does not provide'
    if get_section(opt, 'val').get('save_uncertainty'):
        yield OptionError(('val', 'save_uncertainty'), f'{reason} log_var; {PROVIDERS["log_var"]}.')
    for name, metric in metrics_of_maps(opt).items():
        yield OptionError(('val', 'metrics', name), f'{metric["type"]} requires log_var, which {reason}; '
                                                    f'{PROVIDERS["log_var"]}.')


def check_required_outputs(network: Any, loss: Any, given: Iterable[str] = (),
                           names: tuple[str, str] = ('train.pixel_opt', 'network_g')) -> Iterator[OptionError]:
    """Yields an error for each extra output that the loss requires and the network does not provide in this step.

    Args:
        network: Class of the network.
        loss: None, and a loss of BasicSR's, require none.
        given: Outputs that are in the data.
        names: Keys of loss and network.
    """
    outputs = getattr(loss, 'required_outputs', ())
    if not outputs:
        return
    path, loss_name, network_name = tuple(names[0].split('.')), type(loss).__name__, f'{names[1]}: {network.__name__}'
    for name in outputs:
        if name not in PROVIDERS:
            yield OptionError(path, f"{loss_name}: required_outputs has '{name}'; write a tuple of "
                                    f"{', '.join(PROVIDERS)}, such as ('log_var',).")
        elif name == 'bicubic' and 'teacher_sr' in outputs:
            continue  # one error is enough
        elif name not in given and not provides_output(network, name):
            yield OptionError(path, f'{loss_name} requires {name}, which {network_name} does not provide; '
                                    f'{PROVIDERS[name]}.')
    steps = ('Step 1 is a network such as EDSRVar with ESU, step 2 one such as EDSRTwo with UDL; one run has EDSRVar '
             'with JointUDL.')
    loss_trains, network_trains = (getattr(part, 'trains_log_var', None) for part in (loss, network))
    if loss_trains is True and network_trains is False:
        yield OptionError(path, f'{loss_name} trains the log-variance, which is frozen in {network_name}. {steps}')
    if loss_trains is False and network_trains is True:
        yield OptionError(path, f'{loss_name} weights by a trained log-variance, and that of {network_name} would '
                                f'stay untrained. {steps}')


def _get_base(opt: Opt) -> tuple[Any, Opt, str]:
    """Class, options and key of the base network in one of either step."""
    base, where = base_config(opt['network_g']), 'backbone.' if 'backbone' in opt['network_g'] else ''
    return ARCH_REGISTRY.get(base['type']), base, f'network_g.{where}'


def _check_channels(opt: Opt) -> Iterator[OptionError]:
    """Images with another number of channels than the network takes."""
    _, base, where = _get_base(opt)
    channels = base.get('num_in_ch')
    for phase, dataset in get_section(opt, 'datasets').items():
        given = 1 if get_section(dataset).get('color') == 'y' else 3
        is_paired = get_section(dataset).get('type') in (PAIRS, WITH_MAPS, CACHED)
        if is_paired and type(channels) is int and channels != given:
            if base['type'] == 'EDSR' and channels == 3:
                yield OptionError(('datasets', phase, 'color'), "y gives images of one channel, and BasicSR's EDSR "
                                  'takes RGB images alone; write color: ~, or use DPDNN, which takes both.')
                continue
            yield OptionError(('datasets', phase, 'color'), f'{dataset.get("color") or "~"} gives images of {given} '
                              f'channels, and {where}num_in_ch is {channels}; write {where}num_in_ch: {given}, or '
                              f'color: {"y" if given == 3 else "~"}.')


def _check_scale(opt: Opt) -> Iterator[OptionError]:
    network, base, where = _get_base(opt)
    key, scale = scale_key(network), opt.get('scale')
    parameter = inspect.signature(network).parameters.get(key)
    upscale = base.get(key, parameter and parameter.default)
    if type(upscale) is not int:
        return
    if scale is None:
        yield OptionError(('scale',), f'is missing; write scale: {upscale}, as {where}{key}: {upscale}.')
    elif scale != upscale:
        yield OptionError(('scale',), f'{scale} does not agree with {where}{key}: {upscale}; make both the scale of '
                                      'the data.')
