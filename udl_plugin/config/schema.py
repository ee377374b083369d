"""The options of an option file: which there are, their types, and which need UDLModel. This is the one table of them.

Mappings that BasicSR passes to a class as keyword arguments are checked against the class itself.
"""
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple, Optional, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from udl_plugin.config import value_types as t
from udl_plugin.config.class_options import (
    OF_LOSSES,
    OF_METRICS,
    OF_OPTIMIZERS,
    OPTIMIZERS,
    Adapters,
    check_class_options,
    resolve_class,
)
from udl_plugin.config.problems import ErrorCollector, KeyPath, OptionError, get_section
from udl_plugin.data.lmdb_io import BACKENDS
from udl_plugin.errors import UserError, did_you_mean, lookup_class
from udl_plugin.utils.plain import to_builtins

PAIRS, WITH_MAPS = 'PairedImageDataset', 'PairedImageUncertaintyDataset'
DERIVED_PATHS = ('experiments_root', 'models', 'training_states', 'log', 'visualization', 'results_root')
IGNORED = {'use_shuffle': 'BasicSR always shuffles training data and ignores this option; delete it.'}  # was an option
STRICT = ('SRModel', 'UDLModel')  # other models may have options of their own


class UDLOnly(NamedTuple):
    """Marks an option that only UDLModel supports. `off`: values that leave it disabled."""

    off: tuple = (None, False)


class Section(BaseModel):
    """A mapping in an option file. Its errors are complete messages. The validation context has the `model_type`."""

    model_config = ConfigDict(extra='forbid', strict=True, protected_namespaces=())

    @classmethod
    def udl_only(cls) -> dict[str, UDLOnly]:
        return {key: mark for key, field in cls.model_fields.items() for mark in field.metadata
                if isinstance(mark, UDLOnly)}

    @model_validator(mode='wrap')
    @classmethod
    def _explain(cls, value: Any, handler: ModelWrapValidatorHandler[Any], info: ValidationInfo) -> Any:
        unsupported = cls.udl_only() if (info.context or {}).get('model_type') == 'SRModel' else {}
        known = [key for key in cls.model_fields if key not in unsupported]
        advice = 'model_type: SRModel does not support it; write model_type: UDLModel.'
        errors = [_line_error('udl_only', advice, (key,)) for key, mark in unsupported.items()
                  if isinstance(value, dict) and value.get(key) not in mark.off]
        try:
            section = handler(value)
        except ValidationError as err:
            for error in err.errors(include_url=False):
                kind, loc, message = error['type'], error['loc'], error['msg']
                if kind == 'missing':
                    message = 'is missing.'
                elif kind == 'extra_forbidden' and len(loc) == 1:
                    message = IGNORED.get(str(loc[0])) or \
                        f'is not an option{did_you_mean(loc[0], known)}. The options are: {", ".join(known)}.'
                elif kind in ('dict_type', 'model_type', 'model_attributes_type'):
                    message = t.wrong_value(error['input'], 'a mapping of options')
                errors.append(_line_error(kind, message, loc, error['input']))
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return section


def _line_error(kind: Any, message: str, loc: tuple[Union[int, str], ...], value: Any = None) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError(kind, '{message}', {'message': message}), loc=loc, input=value)


def raise_nested(errors: Iterable[OptionError]) -> None:
    """Raises errors within a validator; pydantic puts the path of the validated mapping before theirs."""
    details = [_line_error('class_option', error.message, error.path) for error in errors]
    if details:
        raise ValidationError.from_exception_data('options', details)


def options_of(registry: Any, adapters: Optional[Adapters] = None, required: Iterable[str] = (),
               may_be_empty: bool = False) -> AfterValidator:
    """Validates the options of a class in a registry, which may be named as in `basicsr.utils.registry`."""
    def check(options: dict[str, Any]) -> dict[str, Any]:
        from basicsr.utils import registry as registries
        classes = getattr(registries, registry) if isinstance(registry, str) else registry
        if options or not may_be_empty:
            missing = [OptionError((key,), 'is missing.') for key in required if key not in options]
            raise_nested([*check_class_options(classes, options, adapters=adapters), *missing])
        return options
    return AfterValidator(check)


def _check_scheduler(options: dict[str, Any]) -> dict[str, Any]:
    try:
        resolve_class(SCHEDULERS, options).model_validate(options)
    except UserError as err:
        raise_nested([OptionError(('type',), str(err).removeprefix('type: '))])
    return options


def _check_backend(backend: Any) -> Any:
    if backend not in BACKENDS:
        message = f'{t.wrong_value(backend, " or ".join(BACKENDS))[:-1]}{did_you_mean(backend, BACKENDS)}.'
        raise PydanticCustomError('backend', '{message}', {'message': message})
    return backend


Options = dict[str, Any]
Network = Annotated[Options, options_of('ARCH_REGISTRY')]
Loss = Annotated[Options, options_of('LOSS_REGISTRY', OF_LOSSES, may_be_empty=True)]  # BasicSR: as without it
Metric = Annotated[Options, options_of('METRIC_REGISTRY', OF_METRICS)]
Optimizer = Annotated[Options, options_of(OPTIMIZERS, OF_OPTIMIZERS, required=['lr'])]
Scheduler = Annotated[Options, AfterValidator(_check_scheduler)]


# ---- the table. An option without a default is required


class TrainOptions(Section):
    total_iter: t.Iterations
    warmup_iter: t.Warmup = -1
    ema_decay: t.Decay = 0
    optim_g: Optimizer
    scheduler: Scheduler
    pixel_opt: Optional[Loss] = None
    perceptual_opt: Optional[Loss] = None
    amp: Annotated[Optional[t.Amp], UDLOnly()] = None
    channels_last: Annotated[Optional[t.Flag], UDLOnly()] = None
    compile: Annotated[Optional[t.Flag], UDLOnly()] = None
    accumulate: Annotated[Optional[t.Count], UDLOnly((None, 1))] = None
    grad_clip: Annotated[Optional[t.Positive], UDLOnly()] = None
    max_skips: Annotated[Optional[t.Count], UDLOnly()] = None


class ValOptions(Section):
    save_img: t.Flag
    val_freq: Optional[t.Iterations] = None
    pbar: t.Flag = False
    suffix: Optional[t.FileName] = None
    metrics: Optional[dict[str, Metric]] = None
    amp: Annotated[Optional[t.Amp], UDLOnly()] = None
    save_uncertainty: Annotated[Optional[t.Flag], UDLOnly()] = None
    uncertainty_limits: Annotated[Optional[t.Limits], UDLOnly()] = None
    save_best: Annotated[Optional[t.Text], UDLOnly()] = None


class ValInTraining(ValOptions):
    val_freq: t.Iterations


class PathOptions(Section):
    pretrain_network_g: Optional[t.Text] = None
    param_key_g: Optional[t.Text] = None
    strict_load_g: t.Flag = True
    resume_state: Optional[t.Text] = None
    ignore_resume_networks: Optional[t.Texts] = None


class WandbOptions(Section):
    project: Optional[t.Text] = None
    resume_id: Optional[t.Text] = None


class LogOptions(Section):
    print_freq: t.Iterations
    save_checkpoint_freq: t.Iterations
    use_tb_logger: t.Flag
    wandb: Optional[WandbOptions] = None
    save_keep: Annotated[Optional[t.Count], UDLOnly()] = None


class DistParams(Section):
    backend: t.Text = 'nccl'
    port: Optional[t.Port] = None


class OptionsFile(Section):
    """What files for training and for testing have in common."""

    name: t.FileName
    model_type: t.Text
    scale: Optional[t.Count] = None
    num_gpu: t.Gpus
    manual_seed: Optional[t.Seed] = None
    datasets: dict[str, Options]
    network_g: Network
    path: PathOptions
    train: Optional[TrainOptions] = None
    val: Optional[ValOptions] = None
    logger: Optional[LogOptions] = None
    dist_params: Optional[DistParams] = None
    find_unused_parameters: t.Flag = False
    imports: Optional[t.Texts] = None  # utils/user_imports.py reads them before this is validated


class TrainingFile(OptionsFile):
    train: TrainOptions
    val: Optional[ValInTraining] = None
    logger: LogOptions


class TestFile(OptionsFile):
    val: ValOptions


class DatasetOptions(Section):
    """What BasicSR's build_dataset and build_dataloader read; a type that is not paired has options of its own."""

    name: t.FileName
    type: t.Text
    num_worker_per_gpu: t.Workers = 0
    batch_size_per_gpu: t.Count = 1
    dataset_enlarge_ratio: t.Ratio = 1
    prefetch_mode: Optional[t.Prefetch] = None
    num_prefetch_queue: t.Count = 1
    pin_memory: t.Flag = False
    persistent_workers: t.Flag = False


LOADER_OPTIONS = DatasetOptions.model_fields.keys() - {'name', 'type'}


class TrainSet(DatasetOptions):
    num_worker_per_gpu: t.Workers
    batch_size_per_gpu: t.Count
    on_bad_record: Optional[t.OnBadRecord] = None  # of any type: udl-train reads it


class IOBackend(Section):  # BasicSR's `memcached` runs code that its options name
    type: Annotated[Any, AfterValidator(_check_backend)]


class _Pairs(Section):
    dataroot_gt: t.Text
    dataroot_lq: t.Text
    dataroot_uncertainty: Optional[t.Text] = None  # of PairedImageUncertaintyDataset, see cross_checks
    io_backend: IOBackend
    meta_info_file: Optional[t.Text] = None
    filename_tmpl: t.Text = '{}'
    mean: Optional[t.Numbers] = None
    std: Optional[t.Numbers] = None
    color: Optional[t.Color] = None
    gt_size: Optional[t.Count] = None
    use_hflip: t.Flag = False
    use_rot: t.Flag = False


class PairedSet(_Pairs, DatasetOptions):
    pass


class PairedTrainSet(_Pairs, TrainSet):
    gt_size: t.Count
    use_hflip: t.Flag
    use_rot: t.Flag


class MultiStep(Section):
    type: t.Text
    milestones: t.Milestones
    gamma: t.Positive = 0.1
    restarts: t.Milestones = Field(default=[0])
    restart_weights: t.Numbers = Field(default=[1])
    last_epoch: t.Number = -1


class Cosine(Section):
    type: t.Text
    periods: t.Periods
    restart_weights: t.Numbers = Field(default=[1])
    eta_min: t.NotNegative = 0
    last_epoch: t.Number = -1


SCHEDULERS: dict[str, type[Section]] = {
    'MultiStepLR': MultiStep, 'MultiStepRestartLR': MultiStep, 'CosineAnnealingRestartLR': Cosine}


# ---- validation


def validate_file(data: Mapping[str, Any], is_train: bool) -> list[OptionError]:
    """All errors of an option file as it is written. Data and checkpoints are not read.

    Args:
        data: Its content.
        is_train: Whether it is for training, or for testing.
    """
    data = to_builtins(data)
    errors = ErrorCollector(error for kind, error in _validate(TrainingFile if is_train else TestFile, data)
                            if is_train or kind != 'missing' or len(error.path) != 2 or error.path[0] == 'val')
    for phase, dataset in get_section(data, 'datasets').items():
        errors.extend(validate_dataset(phase, dataset, is_train))
    errors.extend(_check_relations(data, is_train, errors))
    return errors.errors


def validate_sections(opt: Mapping[str, Any]) -> list[OptionError]:
    """All errors of the options that a model reads: train, val, path, and options of classes.

    Args:
        opt: As BasicSR's `parse_options` returns it, or a dict made by hand, in which keys may be missing.
    """
    required = ('model_type', 'datasets', 'network_g', 'path')
    data = to_builtins({key: opt[key] for key in (*required, 'train', 'val') if key in opt})
    if isinstance(data.get('path'), dict):
        data['path'] = {key: value for key, value in data['path'].items() if key not in DERIVED_PATHS}
    return ErrorCollector(error for kind, error in _validate(OptionsFile, data)
                          if kind != 'missing' or len(error.path) > 2 or error.path[0] in required).errors


def validate_dataset(phase: str, dataset: Any, is_train: bool) -> list[OptionError]:
    """All errors of one entry of `datasets`, as it is written; see `validate_file`."""
    from basicsr.utils.registry import DATASET_REGISTRY
    path, kind = ('datasets', phase), phase.split('_')[0]
    if kind not in (('train', 'val') if is_train else ('val', 'test')) or (kind == 'train' and phase != 'train'):
        return [OptionError(path, f'is not a phase of a {"training" if is_train else "test"}; these are '
                                  f'{"train, val, val_2" if is_train else "test_1, test_2"} and so on.')]
    if not isinstance(dataset, dict):
        return []
    paired = dataset.get('type') in (PAIRS, WITH_MAPS)
    model = (PairedTrainSet if paired else TrainSet) if kind == 'train' else PairedSet if paired else DatasetOptions
    errors = ErrorCollector(error for error_type, error in _validate(model, dataset, path)
                            if paired or error_type != 'extra_forbidden')
    errors.check(_check_registered, DATASET_REGISTRY, dataset, 'type', path, requires=[(*path, 'type')])
    for check in (_check_loader, _check_normalization):
        errors.check(check, dataset, path)
    return errors.errors


def _validate(model: type[Section], data: Mapping[str, Any], path: KeyPath = ()) -> Iterator[tuple[str, OptionError]]:
    """Yields pydantic's type of each error, and the error."""
    from basicsr.utils.registry import MODEL_REGISTRY
    model_type = data.get('model_type')
    try:
        model.model_validate(data, context={'model_type': model_type})
    except ValidationError as err:
        for error in err.errors(include_url=False):
            key = (*path, *map(str, error['loc']))
            if path or model_type in STRICT or not _is_open(error['type'], key):
                yield error['type'], OptionError(key, error['msg'])
    if not path and isinstance(model_type, str):
        yield from (('model', error) for error in _check_registered(MODEL_REGISTRY, data, 'model_type', ()))


def _check_registered(registry: Any, options: Mapping[str, Any], key: str, path: KeyPath) -> Iterator[OptionError]:
    try:
        lookup_class(registry, options[key])
    except UserError as err:
        yield OptionError((*path, key), str(err))


def _is_open(kind: str, path: KeyPath) -> bool:
    """Whether a model that is neither SRModel nor UDLModel may do without an option, or have it in addition."""
    if path[:2] in (('train', 'optim_g'), ('train', 'scheduler')):
        return True
    if kind == 'missing':
        return len(path) == 2 and path[0] in ('train', 'val') and path[1] not in ('total_iter', 'save_img', 'val_freq')
    if kind == 'extra_forbidden' and len(path) == 2 and path[0] == 'path':  # BasicSR makes a folder of any other one
        return re.match('pretrain_network|param_key|strict_load|.*resume', path[1]) is not None
    return kind == 'extra_forbidden' and (len(path) == 1 or (len(path) == 2 and path[0] in ('train', 'val')))


def _check_normalization(dataset: Mapping[str, Any], path: KeyPath) -> Iterator[OptionError]:
    channels = 1 if dataset.get('color') == 'y' else 3
    for key, other in (('mean', 'std'), ('std', 'mean')):
        values = dataset.get(key)
        if values is not None and dataset.get(other) is None:
            yield OptionError((*path, key), f'requires {other}: BasicSR reads both or none.')
        elif values is not None and len(values) != channels:
            yield OptionError((*path, key), f'has {len(values)} numbers for images of {channels} channels; write one '
                                            'for each channel.')
        elif key == 'std' and values is not None and min(values) <= 0:
            yield OptionError((*path, key), f'{values}: images are divided by it; write numbers above 0.')


def _check_loader(dataset: Mapping[str, Any], path: KeyPath) -> Iterator[OptionError]:
    training, workers = path[1] == 'train', dataset.get('num_worker_per_gpu')
    if dataset.get('persistent_workers') is True and (not training or workers == 0):
        reason = 'requires num_worker_per_gpu: 1 or more' if training else 'validation has no workers'
        yield OptionError((*path, 'persistent_workers'), f'{reason}; write false.')
    if training and dataset.get('prefetch_mode') == 'cpu' and workers == 0:
        yield OptionError((*path, 'prefetch_mode'), 'cpu requires num_worker_per_gpu: 1 or more: two threads of one '
                                                    'process would draw random numbers in turn.')
    if training and dataset.get('prefetch_mode') == 'cuda' and dataset.get('pin_memory') is not True:
        yield OptionError((*path, 'pin_memory'), 'must be true with prefetch_mode: cuda.')


def _check_relations(data: Mapping[str, Any], is_train: bool, errors: ErrorCollector) -> Iterator[OptionError]:
    """Yields errors of options that disagree with others. Those that are wrong themselves are in `errors`."""
    train, val, logger = (get_section(data, section) for section in ('train', 'val', 'logger'))
    strict, scale = data.get('model_type') in STRICT, data.get('scale')
    if is_train and isinstance(data.get('datasets'), dict) and 'train' not in data['datasets']:
        yield OptionError(('datasets', 'train'), 'is missing.')
    if is_train and strict and train and not (train.get('pixel_opt') or train.get('perceptual_opt')):
        yield OptionError(('train', 'pixel_opt'), 'is missing: there is no loss to train with.')
    if not is_train and val.get('save_img') is True and 'suffix' not in val:
        yield OptionError(('val', 'suffix'), 'is missing; write suffix: ~ for the name of the test.')
    if strict and train.keys() >= {'total_iter', 'scheduler'} and not (
            errors.has_error_at('train', 'total_iter') or errors.has_error_within('train', 'scheduler')):
        yield from _check_schedule(train['scheduler'], train['total_iter'])
    if get_section(logger, 'wandb').get('project') is not None and logger.get('use_tb_logger') is False:
        yield OptionError(('logger', 'wandb', 'project'), 'requires use_tb_logger: true.')
    metrics = get_section(val, 'metrics')
    for name in metrics:
        border = get_section(metrics, name).get('crop_border')
        if not errors.has_error_at('scale') and type(scale) is type(border) is int and border != scale:
            yield OptionError(('val', 'metrics', name, 'crop_border'), f'{border} does not agree with scale: {scale}; '
                              f'write {scale} (--no-check accepts {border}).')
    sets = [get_section(data, 'datasets', phase) for phase in get_section(data, 'datasets')
            if phase.split('_')[0] == 'val']
    known = [*metrics, *(f'{dataset.get("name")}/{metric}' for dataset in sets for metric in metrics)]
    best = val.get('save_best')
    if isinstance(best, str) and best not in known:
        names = f'they are: {", ".join(known)}' if known else 'there is no metric'
        yield OptionError(('val', 'save_best'), f"'{best}' is neither a name in val.metrics nor DATASET/METRIC"
                                                f'{did_you_mean(best, known)}; {names}.')


def _check_schedule(scheduler: Mapping[str, Any], total_iter: float) -> Iterator[OptionError]:
    model, path = SCHEDULERS[scheduler['type']], ('train', 'scheduler')
    options = model.model_validate(scheduler).model_dump()
    key = 'periods' if model is Cosine else 'restarts'
    expected, given = len(options[key]), len(options['restart_weights'])
    if expected != given:
        yield OptionError((*path, 'restart_weights'), f'requires a number for each of {key}: {expected}, got {given}.')
    if model is Cosine and sum(options['periods']) < t.whole_number(total_iter):
        yield OptionError((*path, 'periods'), f"end at iteration {sum(options['periods'])}, before total_iter: "
                          f'{total_iter}, where BasicSR stops with an error. Make their sum {total_iter}.')
