"""A study's option file: checks it, and expands its variants, networks, scales and seeds into trainings."""
import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Optional, Union

from pydantic import AfterValidator, ConfigDict, Field, StrictStr, ValidationError
from pydantic_core import PydanticCustomError

from udl_plugin.archs.build import get_network_class
from udl_plugin.archs.wrapping import wrapped_config
from udl_plugin.config.class_options import build_loss, scale_key
from udl_plugin.config.problems import OptionError
from udl_plugin.config.schema import WITH_MAPS, Section
from udl_plugin.config.value_types import Count, CountOrNone, FileName, Flag, Iterations, Text, expected, wrong_value
from udl_plugin.config.yaml_loader import read_yml
from udl_plugin.errors import UserError, UserErrors, did_you_mean, raise_errors

Config = dict[str, Any]
PATHS = ('dataroot_gt', 'dataroot_lq', 'meta_info_file')  # options of a dataset
LOGGER = {'print_freq': 100, 'save_checkpoint_freq': 5000}
# added to manual_seed for each step after the first, so that a later step draws other crops
SEED_OFFSET = 1000


# ---- the options of a study


def _distinct(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError
    return values


def _rejected(advice: str) -> AfterValidator:
    """For an option that a study sets itself."""
    def check(value: Any) -> Any:
        raise PydanticCustomError('rejected', '{advice}', {'advice': advice})
    return AfterValidator(check)


def _check_step(step: Config) -> Config:
    """A step of a variant may be just the options of its loss."""
    (StepOptions if 'pixel_opt' in step else LossOptions).model_validate(step)
    return step


Name = Annotated[StrictStr, expected('a string')]
Class = Annotated[StrictStr, expected('the name of a class')]


class OpenSection(Section):
    """A mapping that may hold options of a class; they are checked together with the trainings."""

    model_config = ConfigDict(extra='allow')


class LossOptions(OpenSection):
    type: Class


class StepOptions(OpenSection):
    """A step of a variant: its loss, and options of `train` for this variant only."""

    pixel_opt: LossOptions
    cached_maps: Flag = False
    total_iter: Annotated[Any, _rejected('is the same for all variants; set it in steps.')] = None


class NetworkOptions(OpenSection):
    type: Class
    upscale: Annotated[Any, _rejected('is set for each of scales; delete it.')] = None
    scale: Annotated[Any, _rejected('is set for each of scales; delete it.')] = None


class TrainOptions(OpenSection):
    total_iter: Count
    pixel_opt: Annotated[Any, _rejected('is set by each variant; delete it.')] = None


class TrainSetOptions(OpenSection):
    dataroot_gt: Text
    dataroot_lq: Text
    lq_size: Count
    gt_size: Annotated[Any, _rejected('depends on the scale; set lq_size, for all scales.')] = None


class DatasetsOptions(Section):
    train: TrainSetOptions


class ValOptions(Section):
    benchmark: Text
    val_freq: Iterations


class LogOptions(Section):
    print_freq: Optional[Iterations] = None
    save_checkpoint_freq: Optional[Iterations] = None


class StudyOptions(Section):
    name: FileName
    baseline: Annotated[StrictStr, expected('the name of a variant')]
    seeds: Annotated[list[CountOrNone], AfterValidator(_distinct), Field(min_length=1),
                     expected('a list of distinct integers of at least 0')]
    scales: Annotated[list[Count], AfterValidator(_distinct), Field(min_length=1),
                      expected('a list of distinct integers of at least 1')]
    networks: dict[Name, NetworkOptions]
    variants: dict[Name, list[Annotated[Config, AfterValidator(_check_step)]]]
    steps: list[TrainOptions]
    datasets: DatasetsOptions
    benchmarks: dict[Name, Annotated[StrictStr, expected('a folder that `udl-prepare benchmark` wrote')]]
    val: ValOptions
    logger: Optional[LogOptions] = None
    num_gpu: Annotated[Union[Literal['auto'], Literal[0, 1]],
                       expected('auto, 0 or 1 (each training uses at most one GPU; --jobs N runs N at once)')] = 'auto'


def check_study(config: Mapping[str, Any]) -> Iterator[OptionError]:
    """Yields all errors of a study's options, but for those of its losses and networks."""
    try:
        StudyOptions.model_validate(config)
    except ValidationError as err:
        for error in err.errors(include_url=False):
            yield OptionError(tuple(map(str, error['loc'])), error['msg'])
        return
    empty = [key for key in ('networks', 'variants', 'steps', 'benchmarks') if not config[key]]
    yield from (OptionError((key,), 'is empty.') for key in empty)
    for key in ('networks', 'variants', 'steps'):
        yield from _check_numbers(config[key], (key,))
    for name in config['networks']:
        if 'debug' in name:
            yield OptionError(('networks', name), "BasicSR shortens a training with 'debug' in its name; rename it.")
    variants, limit, baseline = config['variants'], len(config['steps']), config['baseline']
    for name, steps in variants.items():
        if not 0 < len(steps) <= limit:
            yield OptionError(('variants', name), f'expected 1 to {limit} steps, as many as steps has at most, got '
                                                  f'{len(steps)}.')
    for path, name, known in ((('baseline',), baseline, variants),
                              (('val', 'benchmark'), config['val']['benchmark'], config['benchmarks'])):
        if name not in known:
            yield OptionError(path, f"expected one of {', '.join(known)}, got '{name}'{did_you_mean(name, known)}.")
    if baseline in variants and len(variants[baseline]) < max(map(len, variants.values())):
        yield OptionError(('baseline',), f'{baseline} has fewer steps than other variants. Variants are compared with '
                                         'it after equal numbers of iterations; add steps to it.')


def _check_numbers(value: Any, path: tuple[str, ...]) -> Iterator[OptionError]:
    """Numbers that YAML 1.1 reads as strings."""
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _check_numbers(item, (*path, str(key)))
    elif isinstance(value, str) and re.fullmatch(r'[\d.]+[eE][-+]?\d+', value):
        yield OptionError(path, wrong_value(value, 'a number'))


# ---- from options to trainings


class Step(NamedTuple):
    """One step of a variant.

    Attributes:
        name: In names of runs: `L1Loss`, or with options `UDL-offset=0-amp=bf16`.
        loss: `pixel_opt`.
        train: Options of `train` for this variant only.
        stage: Of the network that the loss trains: `plain`, `step 1` or `step 2`.
        cached_maps: Whether it reads maps of the previous step's network instead of running that network.
    """

    name: str
    loss: Config
    train: Config
    stage: str
    cached_maps: bool


class Run(NamedTuple):
    """One training.

    Attributes:
        name: Of the experiment.
        losses: Names of the steps up to this one.
        iterations: Of all steps up to this one.
        parent: Name of the run whose network it starts from.
        opt: Its option file; paths are relative to the study's folder.
        maps: Arguments of `prepare_uncertainty`, if its dataset needs maps of the parent's network.
    """

    name: str
    network: str
    scale: int
    seed: int
    losses: tuple[str, ...]
    iterations: int
    parent: Optional[str]
    opt: Config
    maps: Optional[Config] = None


class Study:
    """A matrix of variants, networks, scales and seeds.

    Args:
        config: The content of a study's option file; `options/studies/losses.yml` explains the keys.
        folder: Where it will run. Paths in the option files of its runs are relative to it.

    Attributes:
        variants: Names of each variant's steps.
        runs: In the order of training: all of one seed before the next. Variants with equal first steps share them.

    Raises:
        UserError: wrong options. Names all of them.
    """

    def __init__(self, config: Config, folder: Union[str, Path]):
        raise_errors(check_study(config))
        self.config, self.folder = config, Path(folder)
        self.name, self.baseline = config['name'], config['baseline']
        errors: list[str] = []
        self._steps: dict[str, list[Step]] = {}
        for variant in config['variants']:
            try:
                self._steps[variant] = self._build_steps(variant)
            except UserError as err:
                errors += err.messages
        raise_errors(errors)
        self.variants = {variant: [step.name for step in steps] for variant, steps in self._steps.items()}
        runs: dict[str, Run] = {}
        for seed in config['seeds']:
            for network in config['networks']:
                for scale in config['scales']:
                    for variant in config['variants']:
                        for run in self._build_runs(variant, network, scale, seed):
                            if runs.setdefault(run.name, run) != run:
                                raise UserError(f"variants.{variant}: two different trainings would be called "
                                                f"'{run.name}'; rename a network.")
        self.runs = list(runs.values())

    def get_run_name(self, variant: str, network: str, scale: int, seed: int, steps: Optional[int] = None) -> str:
        """The name of a variant's last run, or of its run after so many steps."""
        return build_run_name(network, scale, self.variants[variant][:steps], seed)

    def count_iterations(self, steps: int) -> int:
        """Of the first so many steps."""
        return sum(step['total_iter'] for step in self.config['steps'][:steps])

    def get_benchmark(self, name: str, scale: int) -> Config:
        """Options of a PairedImageDataset, with paths relative to the study's folder."""
        root = self._make_relative(self.config['benchmarks'][name])
        return build_benchmark_opt(name, root, scale, self.config['datasets']['train'].get('color'))

    def _build_steps(self, variant: str) -> list[Step]:
        steps: list[Step] = []
        for number, step in enumerate(self.config['variants'][variant]):
            where, train = f'variants.{variant}.{number}', dict(step) if 'pixel_opt' in step else {'pixel_opt': step}
            loss = train.pop('pixel_opt')
            options = [f'{key}={value}' for opt in (loss, train) for key, value in sorted(opt.items()) if key != 'type']
            name = '-'.join([loss['type'], *options])
            cached = train.pop('cached_maps', False)
            built = build_loss(loss, f'{where}.')
            required = getattr(built, 'required_outputs', ())
            stage = 'plain' if not required else 'step 1' if built.trains_log_var else 'step 2'
            previous = steps[-1].stage if steps else None
            if stage == 'step 2' and previous in (None, 'plain'):
                raise UserError(f'{where}: {loss["type"]} requires a network of step 1; train one in the step before, '
                                'for example with ESU.')
            if previous == 'step 2' and stage != 'step 2':
                raise UserError(f'{where}: {loss["type"]} cannot continue a network of step 2.')
            if cached and (stage != 'step 2' or 'log_var' not in required):
                raise UserError(f'{where}.cached_maps: requires a loss that is weighted by the uncertainty of step 1, '
                                'such as UDL.')
            if cached and self.config['datasets']['train'].get('io_backend', {}).get('type') != 'lmdb':
                raise UserError(f'{where}.cached_maps: requires datasets.train.io_backend.type: lmdb.')
            steps.append(Step(name, loss, train, stage, cached))
        return steps

    def _build_runs(self, variant: str, network: str, scale: int, seed: int) -> Iterator[Run]:
        """The run of each step of a variant."""
        base = self.config['networks'][network]
        base = {**base, scale_key(get_network_class(base['type'], f'networks.{network}.')): scale}
        parent, previous, maps, has_ema = None, None, None, False
        for number, step in enumerate(self._steps[variant]):
            names = tuple(self.variants[variant][:number + 1])
            name = build_run_name(network, scale, names, seed)
            opt: Config = {
                'name': name, 'model_type': 'UDLModel', 'scale': scale,
                'num_gpu': self.config.get('num_gpu', 'auto'), 'manual_seed': seed + SEED_OFFSET * number,
                'datasets': {'train': self._build_train_set(scale)},
                'network_g': wrapped_config(step.stage, base),
                'path': {'pretrain_network_g': parent and f'experiments/{parent}/models/net_g_latest.pth',
                         'strict_load_g': previous in (None, step.stage) or step.stage == 'step 2',
                         'resume_state': None},
                'train': {**self.config['steps'][number], **step.train, 'pixel_opt': step.loss},
                'val': {'val_freq': self.config['val']['val_freq'], 'save_img': False, 'metrics': build_metrics(scale)},
                'logger': {**LOGGER, **(self.config.get('logger') or {}), 'use_tb_logger': True},
            }
            if has_ema:
                opt['path']['param_key_g'] = 'params_ema'
            opt['datasets']['val'] = self.get_benchmark(self.config['val']['benchmark'], scale)
            if step.cached_maps:
                train_set = opt['datasets']['train']
                maps = {'model': opt['path']['pretrain_network_g'], 'out': f'maps/{name}/uncertainty.lmdb',
                        'param_key': opt['path'].get('param_key_g', 'params'), 'hr': train_set['dataroot_gt'],
                        'lr': train_set['dataroot_lq']}
                train_set.update(type=WITH_MAPS, dataroot_uncertainty=maps['out'])
            yield Run(name, network, scale, seed, names, self.count_iterations(number + 1), parent,
                      copy.deepcopy(opt), maps)
            parent, previous, has_ema = name, step.stage, bool(opt['train'].get('ema_decay'))

    def _build_train_set(self, scale: int) -> Config:
        dataset = {key: value.replace('{scale}', str(scale)) if isinstance(value, str) else value
                   for key, value in self.config['datasets']['train'].items()}
        dataset['gt_size'] = dataset.pop('lq_size') * scale
        for key in PATHS:
            if key in dataset:
                dataset[key] = self._make_relative(dataset[key])
        return {'name': 'train', **dataset}

    def _make_relative(self, path: str) -> str:
        path = os.path.expanduser(path)
        if os.path.isabs(path):
            return path
        try:
            return os.path.relpath(os.path.abspath(path), os.path.realpath(self.folder))  # the folder may be a link
        except ValueError:  # on another drive of Windows
            return os.path.abspath(path)


def read_study(path: Union[str, Path], folder: Union[str, Path, None] = None) -> Study:
    """Reads a study's option file. Keys that it lacks come from the file beside it that `base` names.

    Args:
        folder: Where it will run; `results/NAME` by default.

    Raises:
        UserError: names the file and the keys.
    """
    config = _read(Path(path))
    try:
        return Study(config, folder or Path('results', str(config.get('name'))))
    except UserError as err:
        raise UserErrors(f"'{path}': {message}" for message in err.messages) from err


def _read(path: Path, seen: tuple[Path, ...] = ()) -> Config:
    """The options of a file and of its bases."""
    if path in seen:
        raise UserError(f"'{path}': base: is circular.")
    config = read_yml(path)
    base = config.pop('base', None)
    return config if base is None else {**_read(path.parent / str(base), (*seen, path)), **config}


def build_benchmark_opt(name: str, root: Union[str, Path], scale: int, color: Optional[str] = None) -> Config:
    """Options of a PairedImageDataset for the benchmark that `udl-prepare benchmark` wrote to the folder `root`."""
    dataset_opt = {'name': name, 'type': 'PairedImageDataset', 'dataroot_gt': f'{root}/GTmod{scale}',
                   'dataroot_lq': f'{root}/LRbicx{scale}', 'io_backend': {'type': 'disk'}}
    return dataset_opt if color is None else {**dataset_opt, 'color': color}


def build_metrics(scale: int) -> Config:
    """Options of PSNR and SSIM on Y, with `scale` pixels of border cropped."""
    return {name: {'type': f'calculate_{name}', 'crop_border': scale, 'test_y_channel': True, 'better': 'higher'}
            for name in ('psnr', 'ssim')}


def build_run_name(network: str, scale: int, losses: Sequence[str], seed: int) -> str:
    return re.sub(r'[^\w.=+-]+', '-', f'{network}_x{scale}_{"_then_".join(losses)}_seed{seed}')
