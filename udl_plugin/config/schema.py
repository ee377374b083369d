"""The options of an option file: which there are, their types, and which need UDLModel. This is the one table of them.

Mappings that BasicSR passes to a class as keyword arguments are checked against the class itself.
"""
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Optional, Union, get_args

from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    create_model,
    model_validator,
)
from pydantic_core import InitErrorDetails

from udl_plugin.config import value_types as t
from udl_plugin.config.class_options import (
    OF_LOSSES,
    OF_METRICS,
    OF_OPTIMIZERS,
    OF_SCHEDULERS,
    OPTIMIZERS,
    SCHEDULERS,
    Adapters,
    check_class_options,
    is_udl_model,
)
from udl_plugin.config.problems import ErrorCollector, KeyPath, OptionError, get_section
from udl_plugin.errors import UserError, did_you_mean, lookup_class
from udl_plugin.utils.plain import to_builtins

PAIRS, WITH_MAPS, CACHED = 'PairedImageDataset', 'PairedImageUncertaintyDataset', 'PairedImageCachedDataset'
DERIVED_PATHS = ('experiments_root', 'models', 'training_states', 'log', 'visualization', 'results_root')
LOG_IMAGES = 4  # default of logger.log_images
EXPLAINED = {  # names that are not options
    'use_shuffle': 'BasicSR always shuffles training data and ignores this option; delete it.',
    'network_d': 'GAN training is not supported; delete network_d and its other options.'}


class Section(BaseModel):
    """A mapping in an option file. Its errors are complete messages. The validation context has the `model_type`."""

    model_config = ConfigDict(extra='forbid', strict=True, protected_namespaces=(), use_attribute_docstrings=True)

    @model_validator(mode='wrap')
    @classmethod
    def _rephrase_errors(cls, value: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        try:
            return handler(value)
        except ValidationError as err:
            raise ValidationError.from_exception_data(cls.__name__, [
                _line_error(error['type'], cls._explain(error), error['loc'], error['input'])
                for error in err.errors(include_url=False)]) from None

    @classmethod
    def _explain(cls, error: Any) -> str:
        """The message of one of pydantic's errors, in the words of an option file."""
        kind, loc, known = error['type'], error['loc'], cls.model_fields
        if kind == 'missing':
            return 'is missing.'
        if kind == 'extra_forbidden' and len(loc) == 1:
            return EXPLAINED.get(loc[0]) or \
                f'is not an option{did_you_mean(loc[0], known)}. The options are: {", ".join(known)}.'
        if kind in ('dict_type', 'model_type', 'model_attributes_type'):
            return t.wrong_value(error['input'], 'a mapping of options')
        return error['msg']


def _line_error(kind: str, message: str, loc: tuple[Union[int, str], ...], value: Any = None) -> InitErrorDetails:
    return InitErrorDetails(type=t.make_error(message, kind), loc=loc, input=value)


def udl_only(*off: Any) -> BeforeValidator:
    """Marks an option that only UDLModel supports. `off`: values besides null and false that leave it disabled."""
    def check(value: Any, info: ValidationInfo) -> Any:
        if (info.context or {}).get('model_type') == 'SRModel' and value not in (None, False, *off):
            raise t.make_error('model_type: SRModel does not support it; write model_type: UDLModel.')
        return value
    return BeforeValidator(check)


def options_of(registry: Any, adapters: Optional[Adapters] = None) -> AfterValidator:
    """Validates the options of a class in a registry; see `check_class_options`."""
    def check(options: dict[str, Any]) -> dict[str, Any]:
        # pydantic puts the path of the validated mapping before theirs
        errors = [_line_error('class_option', error.message, error.path)
                  for error in check_class_options(registry, options, adapters=adapters)]
        if errors:
            raise ValidationError.from_exception_data('options', errors)
        return options
    return AfterValidator(check)


def name_in(registry: Any) -> AfterValidator:
    """Validates the name of a class in a registry."""
    def check(name: str) -> str:
        try:
            lookup_class(registry, name)
        except UserError as err:
            raise t.make_error(str(err)) from None
        return name
    return AfterValidator(check)


Options = dict[str, Any]
Network = Annotated[Options, options_of(ARCH_REGISTRY)]
Loss = Annotated[Options, options_of(LOSS_REGISTRY, OF_LOSSES)]
Metric = Annotated[Options, options_of(METRIC_REGISTRY, OF_METRICS)]
Optimizer = Annotated[Options, options_of(OPTIMIZERS, OF_OPTIMIZERS)]
Scheduler = Annotated[Options, options_of(SCHEDULERS, OF_SCHEDULERS)]


# ---- the table. An option without a default is required


class TeacherOptions(Section):
    path: t.Text
    """Checkpoint of the teacher, a frozen network."""
    network_g: Optional[Network] = None
    """Its network, if the checkpoint does not record it."""
    param_key: Optional[t.Text] = None
    """Key of its weights in the file (default: params_ema if present, or params)."""


class TrainOptions(Section):
    total_iter: t.Iterations
    """Iterations of the training."""
    warmup_iter: t.Warmup = -1
    """Iterations with a rising learning rate; -1: none."""
    ema_decay: t.Decay = 0
    """Decay of a moving average of the weights, such as 0.999; 0: none."""
    optim_g: Optimizer
    """Optimizer and learning rate."""
    scheduler: Scheduler
    """Schedule of the learning rate."""
    pixel_opt: Optional[Loss] = None
    """The loss of each pixel, such as ESU, UDL, JointUDL or L1Loss."""
    perceptual_opt: Optional[Loss] = None
    """BasicSR's perceptual loss, beside it."""
    amp: Annotated[Optional[t.Amp], udl_only()] = None
    """Mixed precision of the network; images, losses and weights stay float32."""
    channels_last: Annotated[Optional[t.Flag], udl_only()] = None
    """Memory format of images and weights: faster on GPUs and with bf16."""
    compile: Annotated[Optional[t.Flag], udl_only()] = None
    """Use torch.compile for network and loss."""
    cuda_graph: Annotated[Optional[t.GraphMode], udl_only('auto')] = None
    """Run the step as one CUDA graph; auto: on one GPU, where possible."""
    tf32: Annotated[Optional[t.Flag], udl_only()] = None
    """Use TF32 for float32 convolutions on GPUs (default: true)."""
    accumulate: Annotated[Optional[t.Count], udl_only(1)] = None
    """Parts that a batch is split into: the same result in less memory."""
    grad_clip: Annotated[Optional[t.Positive], udl_only()] = None
    """Upper limit of the L2 norm of all gradients; not clipped if unset."""
    max_skips: Annotated[Optional[t.Count], udl_only()] = None
    """End after this many non-finite iterations in a row (default: 10)."""
    teacher: Annotated[Optional[TeacherOptions], udl_only()] = None
    """A published network in place of step 1, for the source of the weights."""


class ValOptions(Section):
    save_img: t.Flag
    """Save SR images."""
    val_freq: Optional[t.Iterations] = None
    """Iterations between validations."""
    pbar: t.Flag = False
    """Show a progress bar."""
    suffix: Optional[t.FileName] = None
    """End of the names of saved images."""
    metrics: Optional[dict[str, Metric]] = None
    """Any name, and the metric under it."""
    amp: Annotated[Optional[t.Amp], udl_only()] = None
    """Mixed precision of the network."""
    tile: Annotated[Optional[t.TileSize], udl_only()] = None
    """Run the network on tiles of this many LR pixels, to save memory."""
    save_uncertainty: Annotated[Optional[t.Flag], udl_only()] = None
    """Save the expected error of each image, in 8-bit levels, as a picture and as .npy, and the map itself."""
    uncertainty_limits: Annotated[Optional[t.Limits], udl_only()] = None
    """Expected errors in the first and last colour of these pictures, in 8-bit levels (default: each image's own)."""
    uncertainty_colormap: Annotated[Optional[t.Colormap], udl_only()] = None
    """Colours of these pictures (default: inferno); authors: the paper's JET."""
    save_best: Annotated[Optional[t.Text], udl_only()] = None
    """Save net_g_best.pth, the best by this metric: NAME of the first set, or DATASET/NAME."""


class ValInTraining(ValOptions):
    val_freq: t.Iterations


class PathOptions(Section):
    pretrain_network_g: Optional[t.Text] = None
    """Checkpoint that the network starts from."""
    param_key_g: Optional[t.Text] = None
    """Key of the weights in it (default: params_ema if present, or params)."""
    strict_load_g: t.Flag = True
    """Refuse a checkpoint that does not fit exactly."""
    resume_state: Optional[t.Text] = None
    """Training state to resume from; --auto_resume finds the last."""
    ignore_resume_networks: Optional[t.Texts] = None
    """Networks that a resume does not load."""


class WandbOptions(Section):
    project: Optional[t.Text] = None
    """Project of Weights & Biases; none: not used."""
    resume_id: Optional[t.Text] = None
    """Run to continue there."""


class LogOptions(Section):
    print_freq: t.Iterations
    """Iterations between lines of the log."""
    save_checkpoint_freq: t.Iterations
    """Iterations between checkpoints."""
    use_tb_logger: t.Flag
    """Write curves for TensorBoard, to tb_logger/NAME."""
    wandb: Optional[WandbOptions] = None
    """Curves for Weights & Biases."""
    save_keep: Annotated[Optional[t.Count], udl_only()] = None
    """Keep only this many of the last networks and states (default: all)."""
    log_images: Annotated[t.CountOrNone, udl_only()] = LOG_IMAGES
    """Images of each validation set whose errors TensorBoard shows at each validation; 0: none."""


class DistParams(Section):
    backend: t.Text = 'nccl'
    """Of torch.distributed."""
    port: Optional[t.Port] = None
    """Of the first process, with slurm."""


class OptionsFile(Section):
    """What files for training and for testing have in common."""

    name: t.FileName
    """Name of the experiment: results go to experiments/NAME or results/NAME."""
    model_type: Annotated[t.Text, name_in(MODEL_REGISTRY)]
    """UDLModel, or SRModel of BasicSR; or a class of your own."""
    scale: Optional[t.Count] = None
    """Upscaling factor."""
    num_gpu: t.Gpus
    """GPUs to use; auto: all; 0: the CPU."""
    manual_seed: Optional[t.Seed] = None
    """Seed of the random numbers (default: a random one)."""
    datasets: dict[str, Options]
    """Training and validation sets."""
    network_g: Network
    """The network and its options."""
    path: PathOptions
    """Checkpoints to start or resume from."""
    train: Optional[TrainOptions] = None
    """Loss, optimizer, schedule and speed."""
    val: Optional[ValOptions] = None
    """Validation and metrics."""
    logger: Optional[LogOptions] = None
    """Log and checkpoints."""
    dist_params: Optional[DistParams] = None
    """Distributed training."""
    find_unused_parameters: t.Flag = False
    """Of DistributedDataParallel."""
    imports: Optional[t.Texts] = None  # utils/user_imports.py reads them before this is validated
    """Modules, packages or .py files that register classes of your own; their code is run."""


class TrainingFile(OptionsFile):
    train: TrainOptions
    val: Optional[ValInTraining] = None
    logger: LogOptions


class TestFile(OptionsFile):
    val: ValOptions


class DatasetOptions(Section):
    """What BasicSR's build_dataset and build_dataloader read; a type that is not paired has options of its own."""

    model_config = ConfigDict(extra='allow')

    name: t.FileName
    """Name of the data set, in the log and in curves."""
    type: Annotated[t.Text, name_in(DATASET_REGISTRY)]
    """Class of the data set."""
    num_worker_per_gpu: t.Workers = 0
    """Processes that load data, for each GPU."""
    batch_size_per_gpu: t.Count = 1
    """Images in a batch, for each GPU."""
    dataset_enlarge_ratio: t.Ratio = 1
    """How often an epoch contains each image."""
    prefetch_mode: Optional[t.Prefetch] = None
    """BasicSR's prefetcher; none: PyTorch's own."""
    num_prefetch_queue: t.Count = 1
    """Batches that prefetch_mode: cpu loads ahead."""
    pin_memory: t.Flag = False
    """Pin batches in memory (always done on a GPU by udl-train)."""
    persistent_workers: t.Flag = False
    """Keep the processes between epochs."""


# a user's model may have options of its own in these sections, of these types
EXTENSIBLE: dict[str, type[Section]] = {'train': TrainOptions, 'val': ValOptions, 'logger': LogOptions}
OWN_TYPES: dict[Any, Any] = {bool: t.Flag, int: t.Integer, float: t.Number, str: t.Text, list: t.AnyList, dict: Options}
LOADER_OPTIONS = DatasetOptions.model_fields.keys() - {'name', 'type'}


class TrainSet(DatasetOptions):
    num_worker_per_gpu: t.Workers
    batch_size_per_gpu: t.Count
    on_bad_record: Optional[t.OnBadRecord] = None  # of any type: udl-train reads it
    """What to do at a corrupted image: stop, or skip it with a line in the log (default: stop)."""


class IOBackend(Section):
    type: t.Backend
    """lmdb, or disk for folders of images."""


class _Pairs(Section):
    dataroot_gt: t.Text
    """LMDB or folder of HR images."""
    dataroot_lq: t.Text
    """LMDB or folder of LR images."""
    dataroot_uncertainty: Optional[t.Text] = None  # not of PairedImageDataset, see cross_checks
    """LMDB of cached uncertainty maps, from udl-prepare uncertainty."""
    cache: Optional[t.Cache] = None  # of PairedImageCachedDataset
    """Where PairedImageCachedDataset keeps the images, decoded: on the GPU or in main memory."""
    io_backend: IOBackend
    """How images are stored."""
    meta_info_file: Optional[t.Text] = None
    """A list of the images to use (default: all)."""
    filename_tmpl: t.Text = '{}'
    """Name of an LR image, where {} is that of HR."""
    mean: Optional[t.Numbers] = None
    """Subtracted from the images, for each channel."""
    std: Optional[t.Numbers] = None
    """Divides the images, for each channel."""
    color: Optional[t.Color] = None
    """y: luma only."""
    gt_size: Optional[t.Count] = None
    """Side of the HR patches, in pixels; a multiple of the scale."""
    use_hflip: t.Flag = False
    """Flip at random."""
    use_rot: t.Flag = False
    """Rotate at random."""


class PairedSet(_Pairs, DatasetOptions, extra='forbid'):
    pass


class PairedTrainSet(_Pairs, TrainSet, extra='forbid'):
    gt_size: t.Count
    use_hflip: t.Flag
    use_rot: t.Flag


def reads_maps(dataset_opt: Mapping[str, Any]) -> bool:
    """Whether a data set reads cached uncertainty maps."""
    return dataset_opt.get('type') == WITH_MAPS or (
        dataset_opt.get('type') == CACHED and dataset_opt.get('dataroot_uncertainty') is not None)


def keeps_images_on_device(dataset_opt: Mapping[str, Any]) -> bool:
    """Whether a data set leaves it to UDLModel to cut its patches."""
    return dataset_opt.get('type') == CACHED and dataset_opt.get('cache') != 'host'


# ---- validation


def validate_file(data: Mapping[str, Any], is_train: bool) -> list[OptionError]:
    """All errors of an option file as it is written. Data and checkpoints are not read.

    Args:
        data: Its content.
        is_train: Whether it is for training, or for testing.
    """
    data = to_builtins(data)
    partial = () if is_train else ('train', 'logger')  # a test reads neither
    errors = ErrorCollector(_validate(TrainingFile if is_train else TestFile, data, partial))
    for phase, dataset in get_section(data, 'datasets').items():
        errors.extend(validate_dataset(phase, dataset, is_train))
    errors.extend(_check_relations(data, is_train, errors))
    return errors.errors


def validate_sections(opt: Mapping[str, Any]) -> list[OptionError]:
    """All errors of the options that a model reads: train, val, path, and options of classes.

    Args:
        opt: As BasicSR's `parse_options` returns it, or a dict made by hand, in which keys may be missing.
    """
    keys = ('model_type', 'datasets', 'network_g', 'path', 'train', 'val')
    data = to_builtins({key: opt[key] for key in keys if key in opt})
    if isinstance(data.get('path'), dict):
        data['path'] = {key: value for key, value in data['path'].items() if key not in DERIVED_PATHS}
    return ErrorCollector(_validate(OptionsFile, data, ('name', 'num_gpu', 'train', 'val'))).errors


def validate_dataset(phase: str, dataset: Any, is_train: bool) -> list[OptionError]:
    """All errors of one entry of `datasets`, as it is written; see `validate_file`."""
    path, kind = ('datasets', phase), phase.split('_')[0]
    if kind not in (('train', 'val') if is_train else ('val', 'test')) or (kind == 'train' and phase != 'train'):
        return [OptionError(path, f'is not a phase of a {"training" if is_train else "test"}; these are '
                                  f'{"train, val, val_2" if is_train else "test_1, test_2"} and so on.')]
    if not isinstance(dataset, dict):
        return []  # `validate_file` reports it
    if dataset.get('type') in (PAIRS, WITH_MAPS, CACHED):
        model: type[Section] = PairedTrainSet if kind == 'train' else PairedSet
    else:
        model = TrainSet if kind == 'train' else DatasetOptions
    errors = ErrorCollector(OptionError((*path, *error.path), error.message) for error in _validate(model, dataset))
    errors.extend(_check_prefetching(dataset, path))
    return errors.errors


def _validate(model: type[Section], data: Mapping[str, Any], partial: Iterable[str] = ()) -> Iterator[OptionError]:
    """Yields the errors of a mapping. The keys in `partial` may be missing, and so may what is below them."""
    model_type = data.get('model_type')
    if issubclass(model, OptionsFile) and is_udl_model(model_type):
        try:
            model = _with_extra_options(model, MODEL_REGISTRY.get(model_type))
        except UserError as err:
            yield OptionError(('model_type',), str(err))
    try:
        model.model_validate(data, context={'model_type': model_type})
    except ValidationError as err:
        for error in err.errors(include_url=False):
            path, kind = tuple(map(str, error['loc'])), error['type']
            if kind == 'missing' and path[0] in partial:
                continue
            if kind == 'extra_forbidden' and 'network_d' in data and re.match('gan_opt|net_d_|.*_d$', path[-1]) \
                    and path != ('network_d',):
                continue  # one error for all options of a GAN
            if not issubclass(model, OptionsFile) or _is_strict(model_type) or not _is_open(kind, path):
                yield OptionError(path, error['msg'])


def _with_extra_options(table: type[OptionsFile], model: Any) -> type[OptionsFile]:
    """The table, and in its sections the options that a model declares as `extra_options`; see `UDLModel`.

    Raises:
        UserError: a declaration that is wrong.
    """
    sections: dict[str, Any] = {}
    for name, options in model.extra_options.items():
        for key, value_type in options.items():
            if name not in EXTENSIBLE or key in EXTENSIBLE[name].model_fields or value_type not in list(OWN_TYPES):
                raise UserError(f'{model.__name__}.extra_options: {{{name!r}: {{{key!r}: {value_type!r}}}}}: expected '
                                f'one of {", ".join(EXTENSIBLE)}, a new name, and one of '
                                f'{", ".join(known.__name__ for known in OWN_TYPES)}.')
        field = table.model_fields[name]
        base: Any = next(iter(get_args(field.annotation)), field.annotation)  # X of Optional[X]
        own: Any = {key: (Optional[OWN_TYPES[value_type]], None) for key, value_type in options.items()}
        section = create_model(base.__name__, __base__=base, **own)
        sections[name] = (section, ...) if field.is_required() else (Optional[section], field.default)
    return create_model(table.__name__, __base__=table, **sections) if sections else table


def _is_strict(model_type: Any) -> bool:
    """Whether all options of a model are known; others may have options of their own."""
    return model_type == 'SRModel' or is_udl_model(model_type)


def _is_open(kind: str, path: KeyPath) -> bool:
    """Whether a model that is not strict may do without an option, or have it in addition."""
    if path[:2] in (('train', 'optim_g'), ('train', 'scheduler')):
        return True
    if kind != 'extra_forbidden':
        return False
    if path[0] == 'path':  # BasicSR makes a folder of any other one
        return re.match('pretrain_network|param_key|strict_load|.*resume', path[-1]) is not None
    return len(path) == 1 or path[0] in ('train', 'val')


def _check_prefetching(dataset: Mapping[str, Any], path: KeyPath) -> Iterator[OptionError]:
    mode = dataset.get('prefetch_mode') if path[1] == 'train' else None
    if mode == 'cpu' and dataset.get('num_worker_per_gpu') == 0:
        yield OptionError((*path, 'prefetch_mode'), 'cpu requires num_worker_per_gpu: 1 or more: two threads of one '
                                                    'process would draw random numbers in turn.')
    if mode == 'cuda' and dataset.get('pin_memory') is not True:
        yield OptionError((*path, 'pin_memory'), 'must be true with prefetch_mode: cuda.')


def _check_relations(data: Mapping[str, Any], is_train: bool, errors: ErrorCollector) -> Iterator[OptionError]:
    """Yields errors of options that disagree with others. Those that are wrong themselves are in `errors`."""
    train, val, datasets = (get_section(data, section) for section in ('train', 'val', 'datasets'))
    strict, scale = _is_strict(data.get('model_type')), data.get('scale')
    if is_train and 'train' not in datasets:
        yield OptionError(('datasets', 'train'), 'is missing.')
    if is_train and strict and not (train.get('pixel_opt') or train.get('perceptual_opt')):
        yield OptionError(('train', 'pixel_opt'), 'is missing: there is no loss to train with.')
    if not is_train and val.get('save_img') is True and 'suffix' not in val:
        yield OptionError(('val', 'suffix'), 'is missing; write suffix: ~ for the name of the test.')
    if is_train and strict and 'periods' in get_section(train, 'scheduler') and not (
            errors.has_error_at('train', 'total_iter') or errors.has_error_within('train', 'scheduler')):
        yield from _check_periods(train['scheduler'], train['total_iter'])
    metrics = get_section(val, 'metrics')
    for name in metrics:
        border = get_section(metrics, name).get('crop_border')
        if not errors.has_error_at('scale') and type(scale) is type(border) is int and border != scale:
            yield OptionError(('val', 'metrics', name, 'crop_border'), f'{border} does not agree with scale: {scale}; '
                              f'write {scale} (--no-check accepts {border}).')
    sets = [get_section(datasets, phase).get('name') for phase in datasets if phase.startswith('val')]
    known = [*metrics, *(f'{name}/{metric}' for name in sets for metric in metrics)]
    best = val.get('save_best')
    if isinstance(best, str) and best not in known:
        yield OptionError(('val', 'save_best'), f"'{best}' is neither a name in val.metrics nor DATASET/METRIC"
                          f'{did_you_mean(best, known)}; they are: {", ".join(known) or "none"}.')


def _check_periods(scheduler: Mapping[str, Any], total_iter: float) -> Iterator[OptionError]:
    """Yields errors of a CosineAnnealingRestartLR."""
    periods, weights, path = scheduler['periods'], scheduler.get('restart_weights', [1]), ('train', 'scheduler')
    if len(periods) != len(weights):
        yield OptionError((*path, 'restart_weights'), f'requires a number for each of periods: {len(periods)}, got '
                                                      f'{len(weights)}.')
    if sum(periods) < total_iter:
        yield OptionError((*path, 'periods'), f'end at iteration {sum(periods)}, before total_iter: {total_iter}, '
                                              f'where BasicSR stops with an error. Make their sum {total_iter}.')
