"""The options of a yml: which there are, who reads them, and what they may be. This is the one table of them.

`yml_problems` checks a whole yml as it is written. `section_problems` checks what a model is given, which may be a dict
made by hand: there no key has to be, and what is not the model's is left alone. Sections that BasicSR hands to a class
as keyword arguments are checked against the class itself.
"""
import inspect
import re
from typing import Annotated, Any, Literal, NamedTuple, Optional, Union

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from udl_plugin.checkpoints import as_plain_data
from udl_plugin.data.pairs import backend_problems
from udl_plugin.errors import InputError, check_option_names, did_you_mean, find_registered, shortened

PAIRS, WITH_MAPS = 'PairedImageDataset', 'PairedImageUncertaintyDataset'
MADE_PATHS = ('experiments_root', 'models', 'training_states', 'log', 'visualization', 'results_root')  # parse_options
NUMBER = re.compile(r'\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*')


class Problem(NamedTuple):
    """What is wrong with an option: where, such as `train: optim_g: lr`, and the whole message, which begins so."""

    place: str
    message: str


# ---- what a value may be


def _kind(type_, what, **limits):
    """A type for the table: `what` is said of any other value."""
    def check(value, handler):
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError('told', '{what}', {'what': what}) from None
    return Annotated[type_, Field(**limits), WrapValidator(check)]


def _adapters(**kinds):
    return {name: TypeAdapter(kind) for name, kind in kinds.items()}


def _whole(value):
    """5e3 of YAML, a float, as the whole number that it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refuse(test):
    def check(value):
        if test(value):
            raise ValueError
        return value
    return AfterValidator(check)


_Finite = Annotated[StrictFloat, Field(allow_inf_nan=False, ge=-1e15, le=1e15)]
_Fraction = Annotated[StrictFloat, Field(ge=0, lt=1)]
_Iteration = Annotated[StrictInt, Field(ge=0, le=10 ** 12), BeforeValidator(_whole)]
_Period = Annotated[StrictInt, Field(ge=1, le=10 ** 12), BeforeValidator(_whole)]
_PlainName = Annotated[StrictStr, _refuse(lambda name: not is_plain_name(name))]



def is_plain_name(name):
    """Whether a text can be the name of a file or folder, and leads nowhere else."""
    return (name not in ('.', '..') and re.fullmatch(r'[^/\\\x00-\x1f]+', name) is not None
            and len(name.encode(errors='replace')) <= 150 and name == name.encode(errors='replace').decode())


Flag = _kind(StrictBool, 'true or false')
Text = _kind(Annotated[StrictStr, _refuse(lambda text: '\0' in text)], 'a text')
Texts = _kind(list[StrictStr], 'a list of texts')
FileName = _kind(_PlainName, 'a plain name of a file or folder, a text without / and \\ of at most 150 bytes')
Count = _kind(StrictInt, 'a whole number, 1 or more', ge=1)
CountOrNone = _kind(StrictInt, 'a whole number, 0 or more', ge=0)
Iterations = _kind(_Period, 'a whole number of iterations, 1 or more')
Warmup = _kind(Annotated[StrictInt, Field(ge=-1), BeforeValidator(_whole)],
               'a whole number of iterations, or -1 for none')
Milestones = _kind(list[_Iteration], 'a list of whole numbers of iterations')
Periods = _kind(list[_Period], 'a list of whole numbers of iterations, 1 or more each', min_length=1)
Number = _kind(_Finite, 'a number')
Numbers = _kind(list[_Finite], 'a list of numbers')
Positive = _kind(StrictFloat, 'a number above 0', gt=0, le=1e15, allow_inf_nan=False)
NotNegative = _kind(StrictFloat, 'a number, 0 or more', ge=0, le=1e15, allow_inf_nan=False)
Ratio = _kind(StrictFloat, 'a number above 0, and at most 10000', gt=0, le=10000, allow_inf_nan=False)
Workers = _kind(StrictInt, 'a whole number from 0 to 256', ge=0, le=256)
Decay = _kind(StrictFloat, 'a number from 0 to below 1', ge=0, lt=1)
Betas = _kind(list[_Fraction], 'two numbers from 0 to below 1, such as [0.9, 0.999]', min_length=2, max_length=2)
Seed = _kind(StrictInt, f'a whole number from 0 to {2**31 - 1}', ge=0, lt=2**31)
Gpus = _kind(Union[Literal['auto'], Annotated[StrictInt, Field(ge=0, le=1024)]], 'auto or a whole number, 0 or more')
Amp = _kind(Literal['bf16', 'fp16'], 'bf16, fp16, or ~ for float32')
Limits = _kind(Annotated[list[_Finite], Field(min_length=2, max_length=2), _refuse(lambda pair: pair[0] >= pair[1])],
               'a lower and a higher number, such as [-1, 4]')
Color = _kind(Literal['y'], 'y, or ~ for all channels')
Prefetch = _kind(Literal['cpu', 'cuda'], 'cpu, cuda, or ~')
OnBadRecord = _kind(Literal['stop', 'skip'], 'stop or skip')
Better = _kind(Literal['higher', 'lower'], 'higher or lower')
Port = _kind(StrictInt, 'a whole number from 1 to 65535', ge=1, le=65535)
Options = dict[str, Any]  # of a class


class Ours(NamedTuple):
    """Marks a key that UDLModel alone reads: with these values it asks for nothing."""

    off: tuple = (None, False)


# ---- the table. A key without a default has to be there


class Section(BaseModel):
    model_config = ConfigDict(extra='forbid', strict=True, protected_namespaces=())


class Train(Section):
    total_iter: Iterations
    warmup_iter: Warmup = -1
    ema_decay: Decay = 0
    optim_g: Options
    scheduler: Options
    pixel_opt: Optional[Options] = None
    perceptual_opt: Optional[Options] = None
    amp: Annotated[Optional[Amp], Ours()] = None
    channels_last: Annotated[Optional[Flag], Ours()] = None
    compile: Annotated[Optional[Flag], Ours()] = None
    accumulate: Annotated[Optional[Count], Ours((None, 1))] = None
    max_skips: Annotated[Optional[Count], Ours()] = None


class Val(Section):
    save_img: Flag
    val_freq: Optional[Iterations] = None
    pbar: Flag = False
    suffix: Optional[FileName] = None
    metrics: Optional[dict[str, Options]] = None
    amp: Annotated[Optional[Amp], Ours()] = None
    save_uncertainty: Annotated[Optional[Flag], Ours()] = None
    uncertainty_limits: Annotated[Optional[Limits], Ours()] = None
    save_best: Annotated[Optional[Text], Ours()] = None


class ValInTraining(Val):
    val_freq: Iterations


class Paths(Section):
    pretrain_network_g: Optional[Text] = None
    param_key_g: Optional[Text] = None
    strict_load_g: Flag = True
    resume_state: Optional[Text] = None
    ignore_resume_networks: Optional[Texts] = None


class Wandb(Section):
    project: Optional[Text] = None
    resume_id: Optional[Text] = None


class Logger(Section):
    print_freq: Iterations
    save_checkpoint_freq: Iterations
    use_tb_logger: Flag
    wandb: Optional[Wandb] = None
    save_keep: Annotated[Optional[Count], Ours()] = None


class DistParams(Section):
    backend: Text = 'nccl'
    port: Optional[Port] = None


class Yml(Section):
    """What training and test share."""

    name: FileName
    model_type: Text
    scale: Optional[Count] = None
    num_gpu: Gpus
    manual_seed: Optional[Seed] = None
    datasets: dict[str, Options]
    network_g: Options
    path: Paths
    train: Optional[Train] = None
    val: Optional[Val] = None
    logger: Optional[Logger] = None
    dist_params: Optional[DistParams] = None
    find_unused_parameters: Flag = False


class YmlOfTraining(Yml):
    train: Train
    val: Optional[ValInTraining] = None
    logger: Logger


class YmlOfTest(Yml):
    val: Val


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
OPTIMIZERS = {'Adam': torch.optim.Adam}  # those that upstream's BaseModel knows; their options: as the class has them
# what the signature does not tell of the options of optimizers and metrics
OF_OPTIMIZERS = _adapters(lr=Positive, betas=Betas, eps=NotNegative, weight_decay=NotNegative)
OF_METRICS = _adapters(crop_border=CountOrNone, better=Optional[Better])
OF_ANNOTATIONS = _adapters(bool=Flag, int=_kind(StrictInt, 'a whole number'), float=Number, str=Text)
OF_LOSSES = _adapters(reduction=_kind(Literal['mean', 'sum', 'none'], 'mean, sum or none'),
                      criterion=_kind(Literal['l1', 'fro'], 'l1 or fro'))  # upstream's l2 wants what PyTorch lacks
# upstream writes res_scale=1 of what may be 0.1
OF_DEFAULTS = _adapters(bool=Optional[Flag], int=Optional[Number], float=Optional[Number], str=Optional[Text],
                        numbers=Optional[Numbers])
# by BasicSR or the model, and no options
GIVEN = ('params', 'optimizer', 'img', 'img2', 'log_var', 'db_paths', 'client_keys')
UNREAD = {'use_shuffle': 'always shuffles training data, and does not read this'}  # of ymls for older versions
STRICT = ('SRModel', 'UDLModel')  # of other models not all keys are known


# ---- how it is said


def is_ours(field):
    """The `Ours` of a key that UDLModel alone reads, or None."""
    return next((mark for mark in field.metadata if isinstance(mark, Ours)), None)


def wrong_value(place, value, what):
    """The problem of a value that is not what it should be."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        number = value.strip()
        number = f'!!float {number}' if re.search('[eE]', number) else number
        return Problem(place, f"{place}: '{value}' is a text to YAML; write {number}.")
    if what == 'true or false' and str(value).lower() in ('true', 'false'):
        return Problem(place, f"{place}: '{value}' is a text to YAML; write {value.lower()}.")
    text = shortened(value)
    quoted = f"; write '{text}'" if type(value) in (int, float) and 'a text' in what else ''
    return Problem(place, f'{place}: {text}: must be {what}{quoted}.')


def _missing_section(place):
    return Problem(place, f'{place}: is missing, or not a section.')


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
            return Problem(place, f'{place}: BasicSR {UNREAD[loc[-1]]}; delete it.')
        known = [name for name, field in inner.model_fields.items()
                 if not (is_ours(field) and told == 'model_type: SRModel')]
        where = f'{": ".join(loc[:-1])}: ' if loc[1:] else ''
        whose = f'With {told} its options are' if told and loc[1:] else 'The options are'
        return Problem(place, f"{where}'{loc[-1]}' is not an option{did_you_mean(loc[-1], known)}. "
                              f'{whose}: {", ".join(known)}.')
    if kind == 'missing' and not _is_section(inner.model_fields[error['loc'][-1]].annotation):
        return Problem(place, f'{place}: is missing.')
    if kind in ('missing', 'dict_type', 'model_type', 'model_attributes_type'):
        return _missing_section(place)
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


# ---- sections that are handed to a class


def class_of(registry, section, where, key='type'):
    """The class that `section[key]` names.

    Args:
        registry (Registry | dict): Of BasicSR, or name to class.
        where (str): Where the section stands, such as `network_g: `.

    Raises:
        InputError: there is none of that name; says what may have been meant.
    """
    name = section.get(key)
    if name is None:
        raise InputError(f'{where}{key}: is missing.')
    if not isinstance(registry, dict):
        return find_registered(registry, name, f'{where}{key}: ')
    if str(name) not in registry:
        raise InputError(f"{where}{key}: there is no '{name}'{did_you_mean(name, registry)}; write one of "
                         f'{", ".join(registry)}.')
    return registry[str(name)]


def class_problems(registry, section, place, kinds=None):
    """Yields what is wrong with a section that is handed to a class: names, those that are missing, and types.

    Args:
        registry (Registry | dict): Where the class is.
        section (dict): With a `type`.
        place (str): Where it stands, such as `network_g`.
        kinds (dict): Option to a TypeAdapter, where the class itself does not tell.
    """
    try:
        cls = class_of(registry, section, f'{place}: ')
    except InputError as err:
        yield Problem(f'{place}: type', str(err))
        return
    parameters = inspect.signature(cls).parameters
    for name, value in section.items():
        if name == 'type':
            continue
        here = f'{place}: {name}'
        try:
            check_option_names(cls, [name], f'{place}: ', GIVEN)
        except InputError as err:
            yield Problem(here, str(err))
            continue
        if name == 'backbone' and name in parameters:
            yield from class_problems(registry, value, here) if isinstance(value, dict) else [_missing_section(here)]
        else:
            yield from _type_problems((kinds or {}).get(name) or _kind_of(parameters.get(name)), value, here)
    for name, parameter in parameters.items():
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty \
                and name not in section and name not in GIVEN:
            advice = 'write the scale' if name == 'crop_border' else f'type: {cls.__name__} needs it'
            yield Problem(f'{place}: {name}', f'{place}: {name}: is missing; {advice}.')


def _type_problems(kind, value, place):
    if kind is None:
        return
    try:
        kind.validate_python(value)
    except ValidationError as err:
        yield wrong_value(place, value, err.errors()[0]['msg'])


def _kind_of(parameter):
    """What a parameter takes, by its annotation or else its default; None where neither tells."""
    if parameter is None or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
        return None
    annotation, default = parameter.annotation, parameter.default
    if annotation in (bool, int, float, str):
        return OF_ANNOTATIONS[annotation.__name__]
    if isinstance(default, (list, tuple)) and default and all(type(one) in (int, float) for one in default):
        return OF_DEFAULTS['numbers']
    return OF_DEFAULTS.get(type(default).__name__)


# ---- all of it


def section_problems(opt):
    """What is wrong with the sections that a model reads: train, val, path, and those that are handed to classes.

    Args:
        opt (dict): As `parse_options` returns it, or one made by hand, where keys may be missing.

    Returns:
        list[Problem]
    """
    data = as_plain_data({key: opt[key] for key in Yml.model_fields if key in opt})
    data = {key: value for key, value in data.items()
            if key in ('model_type', 'datasets', 'network_g', 'path', 'train', 'val')}
    if isinstance(data.get('path'), dict):
        data['path'] = {key: value for key, value in data['path'].items() if key not in MADE_PATHS}
    needed = {'model_type', 'datasets', 'network_g', 'path'}
    found = [problem for kind, problem in _table_problems(Yml, data)
             if kind != 'missing' or problem.place in needed]
    return _one_a_place([*found, *_classes_problems(data)])


def yml_problems(data, is_train):
    """What is wrong with a yml as it is written; data and checkpoints are not looked at.

    Args:
        data (dict): Its content.
        is_train (bool): For training, or for a test.

    Returns:
        list[Problem]
    """
    data = as_plain_data(data)
    found = [problem for kind, problem in _table_problems(YmlOfTraining if is_train else YmlOfTest, data)
             if is_train or kind != 'missing' or not problem.place.startswith(('train: ', 'logger: '))]
    for phase, section in subsection(data, 'datasets').items():
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
            value = subsection(data, section).get(key)
            if value not in mark.off:
                yield 'ours', Problem(place, f'{place}: model_type: SRModel does not read it; write model_type: '
                                             'UDLModel.')


def _our_keys():
    for section, model in (('train', Train), ('val', Val), ('logger', Logger)):
        for key, field in model.model_fields.items():
            if is_ours(field):
                yield f'{section}: {key}', is_ours(field)


def _our_key(place):
    return place in dict(_our_keys())


def subsection(data, key):
    """`data[key]` if it is a section, otherwise an empty one."""
    section = data.get(key) if isinstance(data, dict) else None
    return section if isinstance(section, dict) else {}


def _classes_problems(data):
    from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
    train, found = subsection(data, 'train'), []
    if isinstance(data.get('model_type'), str):
        try:
            find_registered(MODEL_REGISTRY, data['model_type'], 'model_type: ')
        except InputError as err:
            found.append(Problem('model_type', str(err)))
    if subsection(data, 'network_g') or data.get('network_g') == {}:
        found += class_problems(ARCH_REGISTRY, data['network_g'], 'network_g')
    for name in ('pixel_opt', 'perceptual_opt'):
        if subsection(train, name):
            found += class_problems(LOSS_REGISTRY, train[name], f'train: {name}', OF_LOSSES)
    if data.get('model_type') in STRICT:
        found += _optimization_problems(train)
    for name, metric in subsection(subsection(data, 'val'), 'metrics').items():
        if isinstance(metric, dict):
            found += class_problems(METRIC_REGISTRY, metric, f'val: metrics: {name}', OF_METRICS)
    return found


def _optimization_problems(train):
    if isinstance(train.get('optim_g'), dict):
        yield from class_problems(OPTIMIZERS, train['optim_g'], 'train: optim_g', OF_OPTIMIZERS)
        if 'lr' not in train['optim_g']:
            yield Problem('train: optim_g: lr', 'train: optim_g: lr: is missing; upstream has no default.')
    scheduler = train.get('scheduler')
    if isinstance(scheduler, dict):
        try:
            model = class_of(SCHEDULERS, scheduler, 'train: scheduler: ')
        except InputError as err:
            yield Problem('train: scheduler: type', str(err))
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
        yield Problem(place, f"{place}: is no phase of a {'training' if is_train else 'test'}; these are: "
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
            class_of(DATASET_REGISTRY, section, f'{place}: ')
        except InputError as err:
            yield Problem(f'{place}: type', str(err))
    if isinstance(section.get('io_backend'), dict):
        for message in backend_problems(section['io_backend'], place):
            yield Problem(f'{place}: io_backend', message)
    yield from _loader_problems(section, place, kind)
    if paired:
        yield from _normalization_problems(section, place)


def _normalization_problems(section, place):
    mean, std = section.get('mean'), section.get('std')
    for key, value, other, partner in (('mean', mean, 'std', std), ('std', std, 'mean', mean)):
        if value is not None and partner is None:
            yield Problem(f'{place}: {key}', f'{place}: {key}: wants {other} beside it: upstream reads both or none.')
    channels = 1 if section.get('color') == 'y' else 3
    for key, value in (('mean', mean), ('std', std)):
        if isinstance(value, list) and len(value) != channels:
            yield Problem(f'{place}: {key}', f'{place}: {key}: {len(value)} numbers, for images of {channels} '
                                             'channels; write one for each.')
    if isinstance(std, list) and any(isinstance(value, (int, float)) and value <= 0 for value in std):
        yield Problem(f'{place}: std', f'{place}: std: {std}: images are divided by it; write numbers above 0.')


def _loader_problems(section, place, kind):
    if section.get('persistent_workers') is True and (kind != 'train' or section.get('num_worker_per_gpu') == 0):
        why = 'wants num_worker_per_gpu: 1 or more' if kind == 'train' else 'there are no workers in validation'
        yield Problem(f'{place}: persistent_workers', f'{place}: persistent_workers: {why}; write false.')
    if kind == 'train' and section.get('prefetch_mode') == 'cpu' and section.get('num_worker_per_gpu') == 0:
        yield Problem(f'{place}: prefetch_mode', f'{place}: prefetch_mode: cpu wants num_worker_per_gpu: 1 or more: '
                                                 'two threads would read beside each other.')
    if kind == 'train' and section.get('prefetch_mode') == 'cuda' and section.get('pin_memory') is not True:
        yield Problem(f'{place}: pin_memory', f'{place}: prefetch_mode: cuda wants pin_memory: true.')


def _relations(data, is_train, blamed):
    """Yields problems of options that pass by themselves; `blamed` are the places of those that do not."""
    train, val, logger = (subsection(data, section) for section in ('train', 'val', 'logger'))
    strict = data.get('model_type') in STRICT
    if is_train and isinstance(data.get('datasets'), dict) and 'train' not in data['datasets']:
        yield _missing_section('datasets: train')
    if is_train and strict and train and not (train.get('pixel_opt') or train.get('perceptual_opt')):
        yield Problem('train: pixel_opt', 'train: pixel_opt: is missing: there is no loss to be trained with.')
    if not is_train and val.get('save_img') is True and 'suffix' not in val:
        yield Problem('val: suffix', 'val: suffix: is missing; write suffix: ~ for the name of the test.')
    if strict and not any(place.startswith('train: scheduler') for place in blamed):
        yield from _schedule_problems(subsection(train, 'scheduler'), train.get('total_iter'))
    if subsection(logger, 'wandb').get('project') is not None and logger.get('use_tb_logger') is False:
        yield Problem('logger: wandb: project', 'logger: wandb: project: wants use_tb_logger: true.')
    for name in subsection(val, 'metrics'):
        border = subsection(val['metrics'], name).get('crop_border')
        scale = data.get('scale')
        if 'scale' not in blamed and type(scale) is type(border) is int and border != scale:
            place = f'val: metrics: {name}: crop_border'
            yield Problem(place, f'{place}: {border} does not agree with scale: {scale}; write {scale} (--no-check '
                                 'lets it pass).')
    if isinstance(val.get('save_best'), str):
        yield from _save_best_problems(val, subsection(data, 'datasets'))


def _schedule_problems(scheduler, total_iter):
    place = 'train: scheduler: restart_weights'
    is_cosine = SCHEDULERS.get(scheduler.get('type')) is Cosine
    key = 'periods' if is_cosine else 'restarts'
    lengths = [len(value) if isinstance(value, list) else None for value in (
        scheduler.get(key, None if is_cosine else [0]), scheduler.get('restart_weights', [1]))]
    if scheduler.get('type') in SCHEDULERS and None not in lengths and lengths[0] != lengths[1]:
        yield Problem(place, f'{place}: wants a number for each of {key}: {lengths[0]}, and has {lengths[1]}.')
    periods = scheduler.get('periods')
    if is_cosine and isinstance(periods, list) and all(type(_whole(number)) is int for number in (
            total_iter, *periods)) and sum(periods) < total_iter:
        yield Problem('train: scheduler: periods', f'train: scheduler: periods: end at iteration {sum(periods)}, and '
                      f'total_iter: {total_iter} goes on; upstream stops there with an error. Make their sum '
                      f'{total_iter}.')


def _save_best_problems(val, datasets):
    wanted, names = val['save_best'], list(subsection(val, 'metrics'))
    sets = [str(section.get('name')) for phase, section in datasets.items()
            if phase.split('_')[0] == 'val' and isinstance(section, dict)]
    known = [*names, *(f'{one}/{name}' for one in sets for name in names)]
    if wanted not in known:
        has = f'they are: {", ".join(known)}' if known else 'there is no metric'
        yield Problem('val: save_best', f"val: save_best: '{wanted}' is no name in val: metrics, nor one of a data set "
                                        f'such as DATASET/psnr{did_you_mean(wanted, known)}; {has}.')
