"""A study's option file: checks it, and expands its variants, networks, scales and seeds into trainings."""
import copy
import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Optional, Union

from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from udl_plugin.archs.build import get_network_class
from udl_plugin.archs.outputs import TEACHER_OUTPUTS
from udl_plugin.archs.wrapping import wrapped_config
from udl_plugin.config.class_options import scale_key
from udl_plugin.config.problems import OptionError
from udl_plugin.config.schema import CACHED, WITH_MAPS, Section
from udl_plugin.config.value_types import Count, CountOrNone, FileName, Flag, Iterations, Text, Texts, expected
from udl_plugin.config.yaml_loader import read_yml
from udl_plugin.errors import UserError, UserErrors, did_you_mean, raise_errors
from udl_plugin.losses.build import build_loss
from udl_plugin.utils.paths import relative_path
from udl_plugin.utils.user_imports import get_imports, import_user_modules, is_path

Config = dict[str, Any]
METRICS = {'psnr': ('PSNR-Y (dB)', 3), 'ssim': ('SSIM-Y', 4)}  # name to title and digits
# of uncertainty maps: name in BasicSR's registry, title, digits
MAP_METRICS = {'calculate_map_ause': ('AUSE', 3), 'calculate_map_calibration': ('calibration error', 3),
               'calculate_map_spearman': ('Spearman', 3), 'calculate_map_sparsity': ('sparsity (Gini)', 3)}
# which of two values of a metric is better; a sparser map is neither better nor worse
BETTER = {'psnr': 'higher', 'ssim': 'higher', 'calculate_map_ause': 'lower', 'calculate_map_calibration': 'lower',
          'calculate_map_spearman': 'higher'}
PATHS = ('dataroot_gt', 'dataroot_lq', 'meta_info_file')  # options of a dataset
# added to manual_seed for each step after the first, so that a later step draws other crops
SEED_OFFSET = 1000
MAX_LOSSES = 110  # characters in the name of a run


# ---- the options of a study. Those of a training that are not listed here are checked with the training's own options


class OpenSection(Section):
    model_config = ConfigDict(extra='allow')


class LossOptions(OpenSection):
    type: Text


class StepOptions(OpenSection):
    """A step of a variant: its loss, and options of `train` for this variant only."""

    pixel_opt: LossOptions
    cached_maps: Flag = False
    detach_features: Flag = False
    total_iter: Annotated[None, expected('no value here: steps sets it, the same for all variants')] = None


def _check_step(step: Config) -> Config:
    """A step of a variant may be just the options of its loss."""
    (StepOptions if 'pixel_opt' in step else LossOptions).model_validate(step)
    return step


Steps = Annotated[list[Annotated[Config, AfterValidator(_check_step)]], Field(min_length=1)]


class NetworkOptions(OpenSection):
    type: Text
    upscale: Annotated[None, expected('no value here: scales sets it')] = None
    scale: Annotated[None, expected('no value here: scales sets it')] = None


class TrainOptions(OpenSection):
    total_iter: Count
    pixel_opt: Annotated[None, expected('no value here: each variant sets it')] = None


class TrainSetOptions(OpenSection):
    dataroot_gt: Text
    dataroot_lq: Text
    lq_size: Count
    gt_size: Annotated[None, expected('no value here: lq_size sets it, for all scales')] = None


class DatasetsOptions(Section):
    train: TrainSetOptions


class ValOptions(Section):
    benchmark: Text
    val_freq: Iterations


class LogOptions(Section):
    print_freq: Iterations = 100
    save_checkpoint_freq: Iterations = 5000


class StudyOptions(Section):
    name: FileName
    baseline: Text
    seeds: Annotated[list[CountOrNone], Field(min_length=1)]
    scales: Annotated[list[Count], Field(min_length=1)]
    networks: Annotated[dict[Text, NetworkOptions], Field(min_length=1)]
    variants: Annotated[dict[Text, Steps], Field(min_length=1)]
    steps: list[TrainOptions]
    datasets: DatasetsOptions
    benchmarks: Annotated[dict[Text, Text], Field(min_length=1)]
    val: ValOptions
    logger: Optional[LogOptions] = None
    imports: Optional[Texts] = None
    num_gpu: Annotated[Literal['auto', 0, 1],
                       expected('auto, 0 or 1 (each training uses at most one GPU; --jobs N runs N at once)')] = 'auto'


def check_study(config: Mapping[str, Any]) -> Iterator[OptionError]:
    """Yields the errors of a study's options, but for those of its losses and networks."""
    try:
        StudyOptions.model_validate(config)
    except ValidationError as err:
        yield from (OptionError(tuple(map(str, error['loc'])), error['msg']) for error in err.errors())
        return
    variants, baseline, benchmark = config['variants'], config['baseline'], config['val']['benchmark']
    for path, name, known in ((('baseline',), baseline, variants),
                              (('val', 'benchmark'), benchmark, config['benchmarks'])):
        if name not in known:
            yield OptionError(path, f"expected one of {', '.join(known)}, got '{name}'{did_you_mean(name, known)}.")
    for name, steps in variants.items():
        if len(steps) > len(config['steps']):
            yield OptionError(('variants', name), f'has {len(steps)} steps, and steps has {len(config["steps"])}.')
        if len(steps) > len(variants.get(baseline, steps)):
            yield OptionError(('baseline',), f'{baseline} has fewer steps than {name}. Variants are compared with it '
                                             'after equal numbers of iterations; add steps to it.')


# ---- from options to trainings


class Step(NamedTuple):
    """One step of a variant.

    Attributes:
        name: In names of runs: `L1Loss`, or with options `UDL-offset=0-amp=bf16`.
        loss: `pixel_opt`.
        train: Options of `train` for this variant only.
        stage: Of the network that the loss trains: `plain`, `step 1` or `step 2`.
        cached_maps: Whether it reads maps of the previous step's network instead of running that network.
        detach_features: Of the network's variance head.
        taught: Whether the previous step's network is its teacher.
    """

    name: str
    loss: Config
    train: Config
    stage: str
    cached_maps: bool
    detach_features: bool
    taught: bool


class Run(NamedTuple):
    """One training.

    Attributes:
        name: Of the experiment.
        losses: Names of the steps up to this one.
        iterations: Of all steps up to this one.
        parent: Name of the run whose network it starts from.
        opt: Its option file; paths are relative to the study's folder.
    """

    name: str
    network: str
    scale: int
    seed: int
    losses: tuple[str, ...]
    iterations: int
    parent: Optional[str]
    opt: Config


class Study:
    """A matrix of variants, networks, scales and seeds.

    Args:
        config: The content of a study's option file; `options/studies/losses.yml` explains the keys.
        folder: Where it will run. Paths in the option files of its runs are relative to it.
        files: The option file that `config` was read from, and the files that it names as `base`.

    Attributes:
        variants: The steps of each variant.
        runs: In the order of training: all of one seed before the next. Variants with equal first steps share them.

    Raises:
        UserError: wrong options. Names all of them.
    """

    def __init__(self, config: Config, folder: Union[str, Path], files: Sequence[Path] = ()):
        raise_errors(check_study(config))
        self.config, self.folder, self.files = config, Path(folder), tuple(files)
        self.name, self.baseline = config['name'], config['baseline']
        self.variants: dict[str, list[Step]] = {}
        errors: list[str] = []
        for variant in config['variants']:
            try:
                self.variants[variant] = self._build_steps(variant)
            except UserError as err:
                errors += err.messages
        raise_errors(errors)
        runs: dict[str, Run] = {}
        for seed, network, scale, variant in itertools.product(
                config['seeds'], config['networks'], config['scales'], self.variants):
            for run in self._build_runs(variant, network, scale, seed):
                if runs.setdefault(run.name, run) != run:
                    raise UserError(f"variants.{variant}: two different trainings would be called '{run.name}'; rename "
                                    'a network.')
        self.runs = list(runs.values())

    def get_run_name(self, variant: str, network: str, scale: int, seed: int, steps: Optional[int] = None) -> str:
        """The name of a variant's last run, or of its run after so many steps.

        The losses are cut, with a hash of what they are, where the name would be too long for a file.
        """
        losses = '_then_'.join(step.name for step in self.variants[variant][:steps])
        if len(losses) > MAX_LOSSES:
            losses = f'{losses[:MAX_LOSSES]}-{hashlib.sha256(losses.encode()).hexdigest()[:8]}'
        return re.sub(r'[^\w.=+-]+', '-', f'{network}_x{scale}_{losses}_seed{seed}')

    def count_iterations(self, steps: int) -> int:
        """Of the first so many steps."""
        return sum(step['total_iter'] for step in self.config['steps'][:steps])

    def get_benchmark(self, name: str, scale: int) -> Config:
        """Options of a PairedImageDataset, with paths relative to the study's folder."""
        dataset_opt = build_benchmark_opt(name, self._make_relative(self.config['benchmarks'][name]), scale)
        color = self.config['datasets']['train'].get('color')
        return dataset_opt if color is None else {**dataset_opt, 'color': color}

    def _build_steps(self, variant: str) -> list[Step]:
        steps: list[Step] = []
        backend = self.config['datasets']['train'].get('io_backend')
        for number, step in enumerate(self.config['variants'][variant]):
            where, train = f'variants.{variant}.{number}', dict(step) if 'pixel_opt' in step else {'pixel_opt': step}
            loss = train.pop('pixel_opt')
            options = [f'{key}={value}' for opt in (loss, train) for key, value in sorted(opt.items()) if key != 'type']
            name = '-'.join([loss['type'], *options])
            cached, detached = train.pop('cached_maps', False), train.pop('detach_features', False)
            built = build_loss(loss, f'{where}.')
            required = set(getattr(built, 'required_outputs', ()))
            stage = 'plain' if not required - {*TEACHER_OUTPUTS} else \
                'step 1' if getattr(built, 'trains_log_var', False) else 'step 2'
            previous = steps[-1].stage if steps else 'plain'
            taught = bool(required & {*TEACHER_OUTPUTS}) and 'teacher' not in train
            if taught and not steps:
                raise UserError(f'{where}: {loss["type"]} requires a teacher: a step before this one, or teacher: '
                                '{path: FILE}.')
            if detached and stage != 'step 1':
                raise UserError(f'{where}.detach_features: {loss["type"]} trains no variance head.')
            if stage == 'step 2' and previous == 'plain':
                raise UserError(f'{where}: {loss["type"]} requires a network of step 1; train one in the step before, '
                                'for example with ESU.')
            if previous == 'step 2' and stage != 'step 2':
                raise UserError(f'{where}: {loss["type"]} cannot continue a network of step 2.')
            if cached and not (stage == 'step 2' and 'log_var' in required and backend == {'type': 'lmdb'}):
                raise UserError(f'{where}.cached_maps: requires a loss that is weighted by the uncertainty of step 1, '
                                'such as UDL, and datasets.train.io_backend: type: lmdb.')
            steps.append(Step(name, loss, train, stage, cached, detached, taught))
        return steps

    def _build_runs(self, variant: str, network: str, scale: int, seed: int) -> Iterator[Run]:
        """The run of each step of a variant."""
        base = self.config['networks'][network]
        base = {**base, scale_key(get_network_class(base['type'], f'networks.{network}.')): scale}
        parent: Optional[Run] = None
        previous = 'plain'
        for number, step in enumerate(self.variants[variant]):
            name = self.get_run_name(variant, network, scale, seed, number + 1)
            opt: Config = {
                'name': name, 'model_type': 'UDLModel', 'scale': scale,
                'num_gpu': self.config.get('num_gpu', 'auto'), 'manual_seed': seed + SEED_OFFSET * number,
                'datasets': {'train': self._build_train_set(scale)},
                'network_g': wrapped_config(step.stage, base, detach_features=step.detach_features),
                'path': {'pretrain_network_g': parent and f'experiments/{parent.name}/models/net_g_latest.pth',
                         'strict_load_g': parent is None or step.stage in (previous, 'step 2'),
                         'resume_state': None},
                'train': {**self.config['steps'][number], **step.train, 'pixel_opt': step.loss},
                'val': {'val_freq': self.config['val']['val_freq'], 'save_img': False, 'metrics': build_metrics(scale)},
                'logger': {**LogOptions(**(self.config.get('logger') or {})).model_dump(), 'use_tb_logger': True},
            }
            if self.config.get('imports'):
                opt['imports'] = [self._make_relative(name) if is_path(name) else name
                                  for name in self.config['imports']]
            opt['datasets']['val'] = self.get_benchmark(self.config['val']['benchmark'], scale)
            if step.taught:
                opt['train']['teacher'] = {'path': opt['path']['pretrain_network_g']}
            if step.cached_maps:
                train_set = opt['datasets']['train']
                train_set['dataroot_uncertainty'] = f'maps/{name}/uncertainty.lmdb'
                if train_set['type'] != CACHED:
                    train_set['type'] = WITH_MAPS
            losses = tuple(step.name for step in self.variants[variant][:number + 1])
            run = Run(name, network, scale, seed, losses, self.count_iterations(number + 1), parent and parent.name,
                      copy.deepcopy(opt))
            yield run
            parent, previous = run, step.stage

    def _build_train_set(self, scale: int) -> Config:
        dataset = {key: value.replace('{scale}', str(scale)) if isinstance(value, str) else value
                   for key, value in self.config['datasets']['train'].items()}
        dataset['gt_size'] = dataset.pop('lq_size') * scale
        dataset.update({key: self._make_relative(dataset[key]) for key in PATHS if key in dataset})
        return {'name': 'train', **dataset}

    def _make_relative(self, path: str) -> str:
        path = os.path.expanduser(path)  # the folder may be a link
        return path if os.path.isabs(path) else relative_path(path, os.path.realpath(self.folder))


def read_study(path: Union[str, Path], folder: Union[str, Path, None] = None, imports: Sequence[str] = ()) -> Study:
    """Reads a study's option file. Keys that it lacks come from the file beside it that `base` names.

    Imports what its `imports` name, too.

    Args:
        folder: Where it will run; `results/NAME` by default.
        imports: Added to its `imports`.

    Raises:
        UserError: names the file and the keys, or an import fails.
    """
    files: list[Path] = []
    try:
        config = _read(Path(path), files)
        names = list(dict.fromkeys([*get_imports(config), *imports]))
        import_user_modules(names)
        if names:
            config['imports'] = names
        return Study(config, folder or Path('results', str(config.get('name'))), files)
    except UserError as err:
        raise UserErrors(f"'{path}': {message}" for message in err.messages) from err


def _read(path: Path, files: list[Path]) -> Config:
    """The options of a file and of its bases. `files`: those whose base it is; it and its bases are added."""
    if path.resolve() in [file.resolve() for file in files]:
        raise UserError('base: leads back to this file; name another one, or delete it.')
    files.append(path)
    config = read_yml(path)
    base = config.pop('base', None)
    return config if base is None else {**_read(path.parent / str(base), files), **config}


def build_benchmark_opt(name: str, root: Union[str, Path], scale: int) -> Config:
    """Options of a PairedImageDataset for the benchmark that `udl-prepare benchmark` wrote to the folder `root`."""
    return {'name': name, 'type': 'PairedImageDataset', 'dataroot_gt': f'{root}/GTmod{scale}',
            'dataroot_lq': f'{root}/LRbicx{scale}', 'io_backend': {'type': 'disk'}}


def build_metrics(scale: int) -> Config:
    """Options of the metrics: on Y, with `scale` pixels of border cropped."""
    return {name: {'type': f'calculate_{name}', 'crop_border': scale, 'test_y_channel': True, 'better': 'higher'}
            for name in METRICS}
