"""The options of a yml: which there are, who reads them, and what they may be. This is the one table of them.

`yml_problems` checks a whole yml as it is written. `section_problems` checks what a model is given, which may be a dict
made by hand: there no key has to be, and what is not the model's is left alone. Sections that BasicSR hands to a class
as keyword arguments are checked against the class itself.
"""
import re
from typing import Annotated, NamedTuple, Optional

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)

from udl_plugin.config.class_options import (
    OF_LOSSES,
    OF_METRICS,
    OF_OPTIMIZERS,
    OPTIMIZERS,
    check_class_options,
    resolve_class,
)
from udl_plugin.config.problems import OptionError, get_section, missing_section, wrong_value
from udl_plugin.config.value_types import (
    Amp,
    Color,
    Count,
    Decay,
    FileName,
    Flag,
    Gpus,
    Iterations,
    Limits,
    Milestones,
    NotNegative,
    Number,
    Numbers,
    OnBadRecord,
    Options,
    Periods,
    Port,
    Positive,
    Prefetch,
    Ratio,
    Seed,
    Text,
    Texts,
    Warmup,
    Workers,
    whole_number,
)
from udl_plugin.data.lmdb_io import check_io_backend
from udl_plugin.errors import UserError, did_you_mean, lookup_class
from udl_plugin.utils.plain import to_builtins

PAIRS, WITH_MAPS = 'PairedImageDataset', 'PairedImageUncertaintyDataset'
MADE_PATHS = ('experiments_root', 'models', 'training_states', 'log', 'visualization', 'results_root')  # parse_options


class UDLOnly(NamedTuple):
    """Marks a key that UDLModel alone reads: with these values it asks for nothing."""

    off: tuple = (None, False)


# ---- the table. A key without a default has to be there


class Section(BaseModel):
    model_config = ConfigDict(extra='forbid', strict=True, protected_namespaces=())


class TrainOptions(Section):
    total_iter: Iterations
    warmup_iter: Warmup = -1
    ema_decay: Decay = 0
    optim_g: Options
    scheduler: Options
    pixel_opt: Optional[Options] = None
    perceptual_opt: Optional[Options] = None
    amp: Annotated[Optional[Amp], UDLOnly()] = None
    channels_last: Annotated[Optional[Flag], UDLOnly()] = None
    compile: Annotated[Optional[Flag], UDLOnly()] = None
    accumulate: Annotated[Optional[Count], UDLOnly((None, 1))] = None
    grad_clip: Annotated[Optional[Positive], UDLOnly()] = None
    max_skips: Annotated[Optional[Count], UDLOnly()] = None


class ValOptions(Section):
    save_img: Flag
    val_freq: Optional[Iterations] = None
    pbar: Flag = False
    suffix: Optional[FileName] = None
    metrics: Optional[dict[str, Options]] = None
    amp: Annotated[Optional[Amp], UDLOnly()] = None
    save_uncertainty: Annotated[Optional[Flag], UDLOnly()] = None
    uncertainty_limits: Annotated[Optional[Limits], UDLOnly()] = None
    save_best: Annotated[Optional[Text], UDLOnly()] = None


class ValInTraining(ValOptions):
    val_freq: Iterations


class PathOptions(Section):
    pretrain_network_g: Optional[Text] = None
    param_key_g: Optional[Text] = None
    strict_load_g: Flag = True
    resume_state: Optional[Text] = None
    ignore_resume_networks: Optional[Texts] = None


class Wandb(Section):
    project: Optional[Text] = None
    resume_id: Optional[Text] = None


class LogOptions(Section):
    print_freq: Iterations
    save_checkpoint_freq: Iterations
    use_tb_logger: Flag
    wandb: Optional[Wandb] = None
    save_keep: Annotated[Optional[Count], UDLOnly()] = None


class DistParams(Section):
    backend: Text = 'nccl'
    port: Optional[Port] = None


class OptionsFile(Section):
    """What training and test share."""

    name: FileName
    model_type: Text
    scale: Optional[Count] = None
    num_gpu: Gpus
    manual_seed: Optional[Seed] = None
    datasets: dict[str, Options]
    network_g: Options
    path: PathOptions
    train: Optional[TrainOptions] = None
    val: Optional[ValOptions] = None
    logger: Optional[LogOptions] = None
    dist_params: Optional[DistParams] = None
    find_unused_parameters: Flag = False


class TrainingFile(OptionsFile):
    train: TrainOptions
    val: Optional[ValInTraining] = None
    logger: LogOptions


class TestFile(OptionsFile):
    val: ValOptions


class DataSet(Section):
    """What build_dataset and build_dataloader read; other types of data sets have more."""

    name: FileName
    type: Text
    num_worker_per_gpu: Workers = 0
    batch_size_per_gpu: Count = 1
    dataset_enlarge_ratio: Ratio = 1
    prefetch_mode: Optional[Prefetch] = None
    num_prefetch_queue: Count = 1
    pin_memory: Flag = False
    persistent_workers: Flag = False


LOADER_OPTIONS = DataSet.model_fields.keys() - {'name', 'type'}


class TrainSet(DataSet):
    num_worker_per_gpu: Workers
    batch_size_per_gpu: Count
    on_bad_record: Optional[OnBadRecord] = None  # udl-train reads it, of any type


class _Pairs(Section):
    dataroot_gt: Text
    dataroot_lq: Text
    dataroot_uncertainty: Optional[Text] = None  # of PairedImageUncertaintyDataset; check_options refuses it elsewhere
    io_backend: Options
    meta_info_file: Optional[Text] = None
    filename_tmpl: Text = '{}'
    mean: Optional[Numbers] = None
    std: Optional[Numbers] = None
    color: Optional[Color] = None
    gt_size: Optional[Count] = None
    use_hflip: Flag = False
    use_rot: Flag = False


class PairedSet(_Pairs, DataSet):
    pass


class PairedTrainSet(_Pairs, TrainSet):
    gt_size: Count
    use_hflip: Flag
    use_rot: Flag


class MultiStep(Section):
    type: Text
    milestones: Milestones
    gamma: Positive = 0.1
    restarts: Milestones = Field(default=[0])
    restart_weights: Numbers = Field(default=[1])
    last_epoch: Number = -1


class Cosine(Section):
    type: Text
    periods: Periods
    restart_weights: Numbers = Field(default=[1])
    eta_min: NotNegative = 0
    last_epoch: Number = -1


SCHEDULERS = {'MultiStepLR': MultiStep, 'MultiStepRestartLR': MultiStep, 'CosineAnnealingRestartLR': Cosine}
UNREAD = {'use_shuffle': 'always shuffles training data, and does not read this'}  # of ymls for older versions
STRICT = ('SRModel', 'UDLModel')  # of other models not all keys are known


# ---- how it is said


def is_ours(field):
    """The `Ours` of a key that UDLModel alone reads, or None."""
    return next((mark for mark in field.metadata if isinstance(mark, UDLOnly)), None)


def _validate(model, section, place=(), told=''):
    """Yields problems of a section of the table; `told` is what its keys hang on, such as a model_type."""
    try:
        model.model_validate(section)
    except ValidationError as err:
        for error in err.errors(include_url=False):
            loc = [str(part) for part in (*place, *error['loc'])]
            yield error['type'], _said(model, error, loc, told)


def _said(model, error, loc, told):
    place, kind = ': '.join(loc), error['type']
    inner = _model_at(model, error['loc'][:-1])
    if kind == 'extra_forbidden':
        if loc[-1] in UNREAD:
            return OptionError(place, f'{place}: BasicSR {UNREAD[loc[-1]]}; delete it.')
        known = [name for name, field in inner.model_fields.items()
                 if not (is_ours(field) and told == 'model_type: SRModel')]
        where = f'{": ".join(loc[:-1])}: ' if loc[1:] else ''
        whose = f'With {told} its options are' if told and loc[1:] else 'The options are'
        return OptionError(place, f"{where}'{loc[-1]}' is not an option{did_you_mean(loc[-1], known)}. "
                              f'{whose}: {", ".join(known)}.')
    if kind == 'missing' and not _is_section(inner.model_fields[error['loc'][-1]].annotation):
        return OptionError(place, f'{place}: is missing.')
    if kind in ('missing', 'dict_type', 'model_type', 'model_attributes_type'):
        return missing_section(place)
    return wrong_value(place, error['input'], error['msg'])


def _is_section(annotation):
    return 'dict[' in str(annotation) or (isinstance(annotation, type) and issubclass(annotation, Section))


def _model_at(model, loc):
    for key in loc:
        field = model.model_fields.get(key)
        inner = [part for part in (field.annotation, *getattr(field.annotation, '__args__', ()))
                 if isinstance(part, type) and issubclass(part, Section)] if field else []
        model = inner[0] if inner else model
    return model


# ---- all of it


def validate_sections(opt):
    """What is wrong with the sections that a model reads: train, val, path, and those that are handed to classes.

    Args:
        opt (dict): As `parse_options` returns it, or one made by hand, where keys may be missing.

    Returns:
        list[Problem]
    """
    data = to_builtins({key: opt[key] for key in OptionsFile.model_fields if key in opt})
    data = {key: value for key, value in data.items()
            if key in ('model_type', 'datasets', 'network_g', 'path', 'train', 'val')}
    if isinstance(data.get('path'), dict):
        data['path'] = {key: value for key, value in data['path'].items() if key not in MADE_PATHS}
    needed = {'model_type', 'datasets', 'network_g', 'path'}
    found = [problem for kind, problem in _table_problems(OptionsFile, data)
             if kind != 'missing' or problem.place in needed]
    return _one_a_place([*found, *_classes_problems(data)])


def validate_file(data, is_train):
    """What is wrong with a yml as it is written; data and checkpoints are not looked at.

    Args:
        data (dict): Its content.
        is_train (bool): For training, or for a test.

    Returns:
        list[Problem]
    """
    data = to_builtins(data)
    found = [problem for kind, problem in _table_problems(TrainingFile if is_train else TestFile, data)
             if is_train or kind != 'missing' or not problem.place.startswith(('train: ', 'logger: '))]
    for phase, section in get_section(data, 'datasets').items():
        found += dataset_problems(phase, section, is_train)
    found += _classes_problems(data)
    return _one_a_place([*found, *_relations(data, is_train, {problem.place for problem in found})])


def _one_a_place(problems):
    """The first of each place: the others follow from it."""
    first = {}
    for problem in problems:
        first.setdefault(problem.place, problem)
    return list(first.values())


def _table_problems(model, data):
    """Yields the type of pydantic's error and the problem, as far as the model_type lets them be known."""
    model_type = data.get('model_type')
    for kind, problem in _validate(model, data, told=f'model_type: {model_type}'):
        section = problem.place.split(': ')[0]
        known_by_all = section in ('logger', 'dist_params') or problem.place in (
            'train: total_iter', 'val: save_img', 'val: val_freq')
        open_ended = kind in ('missing', 'extra_forbidden') and model_type not in STRICT
        if kind == 'missing' and ': ' not in problem.place:
            open_ended = False
        if kind == 'extra_forbidden' and section == 'path' and not re.match(
                'path: (pretrain_network|param_key|strict_load|.*resume)', problem.place):
            open_ended = False  # upstream makes a folder of any other path
        if model_type == 'SRModel' and (kind == 'told' and _our_key(problem.place)):
            continue  # below
        if not open_ended or known_by_all:
            yield kind, problem
    if model_type == 'SRModel':
        for place, mark in _our_keys():
            section, key = place.split(': ')
            value = get_section(data, section).get(key)
            if value not in mark.off:
                yield 'ours', OptionError(place, f'{place}: model_type: SRModel does not read it; write model_type: '
                                             'UDLModel.')


def _our_keys():
    for section, model in (('train', TrainOptions), ('val', ValOptions), ('logger', LogOptions)):
        for key, field in model.model_fields.items():
            if is_ours(field):
                yield f'{section}: {key}', is_ours(field)


def _our_key(place):
    return place in dict(_our_keys())


def _classes_problems(data):
    from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
    train, found = get_section(data, 'train'), []
    if isinstance(data.get('model_type'), str):
        try:
            lookup_class(MODEL_REGISTRY, data['model_type'], 'model_type: ')
        except UserError as err:
            found.append(OptionError('model_type', str(err)))
    if get_section(data, 'network_g') or data.get('network_g') == {}:
        found += check_class_options(ARCH_REGISTRY, data['network_g'], 'network_g')
    for name in ('pixel_opt', 'perceptual_opt'):
        if get_section(train, name):
            found += check_class_options(LOSS_REGISTRY, train[name], f'train: {name}', OF_LOSSES)
    if data.get('model_type') in STRICT:
        found += _optimization_problems(train)
    for name, metric in get_section(get_section(data, 'val'), 'metrics').items():
        if isinstance(metric, dict):
            found += check_class_options(METRIC_REGISTRY, metric, f'val: metrics: {name}', OF_METRICS)
    return found


def _optimization_problems(train):
    if isinstance(train.get('optim_g'), dict):
        yield from check_class_options(OPTIMIZERS, train['optim_g'], 'train: optim_g', OF_OPTIMIZERS)
        if 'lr' not in train['optim_g']:
            yield OptionError('train: optim_g: lr', 'train: optim_g: lr: is missing; upstream has no default.')
    scheduler = train.get('scheduler')
    if isinstance(scheduler, dict):
        try:
            model = resolve_class(SCHEDULERS, scheduler, 'train: scheduler: ')
        except UserError as err:
            yield OptionError('train: scheduler: type', str(err))
            return
        told = f'type: {scheduler["type"]}'
        yield from (problem for _, problem in _validate(model, scheduler, ('train', 'scheduler'), told))


def dataset_problems(phase, section, is_train):
    """What is wrong with one section of `datasets`, as it is written; see `yml_problems`."""
    from basicsr.data.data_util import paired_paths_from_folder  # noqa: F401 (its package registers the data sets)
    from basicsr.utils.registry import DATASET_REGISTRY
    place, kind = f'datasets: {phase}', phase.split('_')[0]
    phases = ('train', 'val') if is_train else ('val', 'test')
    if kind not in phases or (kind == 'train' and phase != 'train'):
        yield OptionError(place, f"{place}: is no phase of a {'training' if is_train else 'test'}; these are: "
                             f"{'train, val, val_2' if is_train else 'test_1, test_2'} and so on.")
        return
    if not isinstance(section, dict):
        return
    paired = section.get('type') in (PAIRS, WITH_MAPS)
    model = (PairedTrainSet if paired else TrainSet) if kind == 'train' else PairedSet if paired else DataSet
    for error, problem in _validate(model, section, ('datasets', phase), f'type: {section.get("type")}'):
        if paired or error != 'extra_forbidden':
            yield problem
    if isinstance(section.get('type'), str):
        try:
            resolve_class(DATASET_REGISTRY, section, f'{place}: ')
        except UserError as err:
            yield OptionError(f'{place}: type', str(err))
    if isinstance(section.get('io_backend'), dict):
        for message in check_io_backend(section['io_backend'], place):
            yield OptionError(f'{place}: io_backend', message)
    yield from _loader_problems(section, place, kind)
    if paired:
        yield from _normalization_problems(section, place)


def _normalization_problems(section, place):
    mean, std = section.get('mean'), section.get('std')
    for key, value, other, partner in (('mean', mean, 'std', std), ('std', std, 'mean', mean)):
        if value is not None and partner is None:
            yield OptionError(f'{place}: {key}', f'{place}: {key}: wants {other} beside it: upstream reads both or none.')
    channels = 1 if section.get('color') == 'y' else 3
    for key, value in (('mean', mean), ('std', std)):
        if isinstance(value, list) and len(value) != channels:
            yield OptionError(f'{place}: {key}', f'{place}: {key}: {len(value)} numbers, for images of {channels} '
                                             'channels; write one for each.')
    if isinstance(std, list) and any(isinstance(value, (int, float)) and value <= 0 for value in std):
        yield OptionError(f'{place}: std', f'{place}: std: {std}: images are divided by it; write numbers above 0.')


def _loader_problems(section, place, kind):
    if section.get('persistent_workers') is True and (kind != 'train' or section.get('num_worker_per_gpu') == 0):
        why = 'wants num_worker_per_gpu: 1 or more' if kind == 'train' else 'there are no workers in validation'
        yield OptionError(f'{place}: persistent_workers', f'{place}: persistent_workers: {why}; write false.')
    if kind == 'train' and section.get('prefetch_mode') == 'cpu' and section.get('num_worker_per_gpu') == 0:
        yield OptionError(f'{place}: prefetch_mode', f'{place}: prefetch_mode: cpu wants num_worker_per_gpu: 1 or more: '
                                                 'two threads would read beside each other.')
    if kind == 'train' and section.get('prefetch_mode') == 'cuda' and section.get('pin_memory') is not True:
        yield OptionError(f'{place}: pin_memory', f'{place}: prefetch_mode: cuda wants pin_memory: true.')


def _relations(data, is_train, blamed):
    """Yields problems of options that pass by themselves; `blamed` are the places of those that do not."""
    train, val, logger = (get_section(data, section) for section in ('train', 'val', 'logger'))
    strict = data.get('model_type') in STRICT
    if is_train and isinstance(data.get('datasets'), dict) and 'train' not in data['datasets']:
        yield missing_section('datasets: train')
    if is_train and strict and train and not (train.get('pixel_opt') or train.get('perceptual_opt')):
        yield OptionError('train: pixel_opt', 'train: pixel_opt: is missing: there is no loss to be trained with.')
    if not is_train and val.get('save_img') is True and 'suffix' not in val:
        yield OptionError('val: suffix', 'val: suffix: is missing; write suffix: ~ for the name of the test.')
    if strict and not any(place.startswith('train: scheduler') for place in blamed):
        yield from _schedule_problems(get_section(train, 'scheduler'), train.get('total_iter'))
    if get_section(logger, 'wandb').get('project') is not None and logger.get('use_tb_logger') is False:
        yield OptionError('logger: wandb: project', 'logger: wandb: project: wants use_tb_logger: true.')
    for name in get_section(val, 'metrics'):
        border = get_section(val['metrics'], name).get('crop_border')
        scale = data.get('scale')
        if 'scale' not in blamed and type(scale) is type(border) is int and border != scale:
            place = f'val: metrics: {name}: crop_border'
            yield OptionError(place, f'{place}: {border} does not agree with scale: {scale}; write {scale} (--no-check '
                                 'lets it pass).')
    if isinstance(val.get('save_best'), str):
        yield from _save_best_problems(val, get_section(data, 'datasets'))


def _schedule_problems(scheduler, total_iter):
    place = 'train: scheduler: restart_weights'
    is_cosine = SCHEDULERS.get(scheduler.get('type')) is Cosine
    key = 'periods' if is_cosine else 'restarts'
    lengths = [len(value) if isinstance(value, list) else None for value in (
        scheduler.get(key, None if is_cosine else [0]), scheduler.get('restart_weights', [1]))]
    if scheduler.get('type') in SCHEDULERS and None not in lengths and lengths[0] != lengths[1]:
        yield OptionError(place, f'{place}: wants a number for each of {key}: {lengths[0]}, and has {lengths[1]}.')
    periods = scheduler.get('periods')
    if is_cosine and isinstance(periods, list) and all(type(whole_number(number)) is int for number in (
            total_iter, *periods)) and sum(periods) < total_iter:
        yield OptionError('train: scheduler: periods', f'train: scheduler: periods: end at iteration {sum(periods)}, and '
                      f'total_iter: {total_iter} goes on; upstream stops there with an error. Make their sum '
                      f'{total_iter}.')


def _save_best_problems(val, datasets):
    wanted, names = val['save_best'], list(get_section(val, 'metrics'))
    sets = [str(section.get('name')) for phase, section in datasets.items()
            if phase.split('_')[0] == 'val' and isinstance(section, dict)]
    known = [*names, *(f'{one}/{name}' for one in sets for name in names)]
    if wanted not in known:
        has = f'they are: {", ".join(known)}' if known else 'there is no metric'
        yield OptionError('val: save_best', f"val: save_best: '{wanted}' is no name in val: metrics, nor one of a data set "
                                        f'such as DATASET/psnr{did_you_mean(wanted, known)}; {has}.')
