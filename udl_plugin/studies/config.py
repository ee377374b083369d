"""The yml of a study, and the trainings that it comes down to."""
import copy
import os
import re
from pathlib import Path
from typing import NamedTuple

from udl_plugin.archs.build import get_network_class
from udl_plugin.archs.wrapping import wrapped_config
from udl_plugin.config.class_options import build_loss, scale_key
from udl_plugin.config.cross_checks import WITH_MAPS
from udl_plugin.config.value_types import is_plain_name
from udl_plugin.config.yaml_loader import read_yml
from udl_plugin.errors import UserError, did_you_mean, truncate_repr

KEYS = {
    'name': (str, 'a word'), 'baseline': (str, 'the name of a variant'),
    'seeds': (list, 'a list of different whole numbers'), 'scales': (list, 'a list of different whole numbers'),
    'networks': (dict, 'a section'), 'variants': (dict, 'a section'), 'steps': (list, 'a list'),
    'datasets': (dict, 'a section'), 'benchmarks': (dict, 'a section'), 'val': (dict, 'a section'),
    'logger': (dict, 'a section'), 'num_gpu': ((str, int), 'auto or a number'),
}
OPTIONAL = ('logger', 'num_gpu')
CACHED = 'cached_maps'  # in a step of a variant, beside pixel_opt and options of train:
PATHS = ('dataroot_gt', 'dataroot_lq', 'meta_info_file')  # in the section of a data set
LOGGER = {'print_freq': 100, 'save_checkpoint_freq': 5000}
# manual_seed of a later step, which is to see other crops than the first: the study's seed and so many for each step
SEEDS_APART = 1000


class Run(NamedTuple):
    """One training of BasicSR.

    Attributes:
        name (str): Of the experiment.
        network, scale, seed: Where in the matrix.
        losses (tuple[str]): One for each step up to this one, in short.
        iterations (int): Of all steps up to this one.
        parent (str | None): The run that it goes on from.
        opt (dict): The yml that it is trained with, in the study's folder.
        maps (dict | None): Where the data set wants maps of the parent's network, what `prepare_uncertainty` takes.
    """

    name: str
    network: str
    scale: int
    seed: int
    losses: tuple
    iterations: int
    parent: str
    opt: dict
    maps: dict = None


class Study:
    """A matrix of variants, networks, scales and seeds.

    Args:
        section (dict): The content of a study's yml; `options/studies/losses.yml` tells its keys.
        folder (str | Path): Where it will run; paths in the ymls of its runs are seen from there.

    Attributes:
        runs (list[Run]): In the order in which they should be trained: all of a seed, then the next one. Variants whose
            first steps are the same share them.

    Raises:
        UserError: names the key.
    """

    def __init__(self, section, folder):
        self.section, self.folder = _checked(section), Path(folder)
        self.name, self.baseline = section['name'], section['baseline']
        self.variants = {variant: list(map(_short, steps)) for variant, steps in section['variants'].items()}
        runs = {}
        for seed in section['seeds']:
            for network in section['networks']:
                for scale in section['scales']:
                    for variant in section['variants']:
                        for run in self._runs_of(variant, network, scale, seed):
                            if runs.setdefault(run.name, run) != run:
                                raise UserError(f"variants: {variant}: two different trainings would be called "
                                                 f"'{run.name}'; rename a network.")
        self.runs = list(runs.values())

    def run_of(self, variant, network, scale, seed, step=None):
        """The name of the last run of a variant, or of that after so many steps."""
        return run_name(network, scale, self.variants[variant][:step], seed)

    def iterations(self, variant):
        return sum(step['total_iter'] for step in self.section['steps'][:len(self.variants[variant])])

    def benchmark(self, name, scale):
        """Options of a PairedImageDataset, as a yml of BasicSR has them, seen from the study's folder."""
        root = self._path(self.section['benchmarks'][name])
        return benchmark_section(name, root, scale, self.section['datasets']['train'].get('color'))

    def _runs_of(self, variant, network, scale, seed):
        plain = self.section['networks'][network]
        plain = {**plain, scale_key(get_network_class(plain['type'], f'networks: {network}: ')): scale}
        parent, kind, maps, averaged = None, None, None, None
        for step, section in enumerate(self.section['variants'][variant]):
            loss, options = _loss_and_options(section)
            cached = options.pop(CACHED, False)
            before, kind = kind, _kind(loss, kind, f'variants: {variant}: step {step + 1}')
            short = tuple(self.variants[variant][:step + 1])
            name = run_name(network, scale, short, seed)
            opt = {
                'name': name, 'model_type': 'UDLModel', 'scale': scale,
                'num_gpu': self.section.get('num_gpu', 'auto'), 'manual_seed': seed + SEEDS_APART * step,
                'datasets': {'train': self._train_set(scale)},
                'network_g': wrapped_config(kind, plain),
                'path': {'pretrain_network_g': parent and f'experiments/{parent}/models/net_g_latest.pth',
                         'strict_load_g': before in (None, kind) or kind == 'step 2', 'resume_state': None},
                'train': {**self.section['steps'][step], **options, 'pixel_opt': loss},
                'val': {'val_freq': self.section['val']['val_freq'], 'save_img': False, 'metrics': metrics(scale)},
                'logger': {**LOGGER, **self.section.get('logger', {}), 'use_tb_logger': True},
            }
            if averaged:
                opt['path']['param_key_g'] = 'params_ema'
            averaged = opt['train'].get('ema_decay')  # of the step that the next one goes on from
            opt['datasets']['val'] = self.benchmark(self.section['val']['benchmark'], scale)
            if cached:
                if kind != 'step 2' or 'log_var' not in build_loss(loss, '').needs:
                    raise UserError(f'variants: {variant}: step {step + 1}: {CACHED}: no loss weighs by maps of a '
                                     'step before, as UDL does.')
                train_set = opt['datasets']['train']
                if train_set.get('io_backend', {}).get('type') != 'lmdb':
                    raise UserError(f'variants: {variant}: {CACHED}: datasets: train: io_backend: maps are kept for '
                                     'LMDBs, type: lmdb.')
                maps = {'model': opt['path']['pretrain_network_g'], 'out': f'maps/{name}/uncertainty.lmdb',
                        'param_key': opt['path'].get('param_key_g', 'params'), 'hr': train_set['dataroot_gt'],
                        'lr': train_set['dataroot_lq']}
                train_set.update(type=WITH_MAPS, dataroot_uncertainty=maps['out'])
            iterations = sum(step['total_iter'] for step in self.section['steps'][:step + 1])
            yield Run(name, network, scale, seed, short, iterations, parent, copy.deepcopy(opt), maps)
            parent = name

    def _train_set(self, scale):
        section = {key: value.replace('{scale}', str(scale)) if isinstance(value, str) else value
                   for key, value in self.section['datasets']['train'].items()}
        section['gt_size'] = section.pop('lq_size') * scale
        for key in PATHS:
            if key in section:
                section[key] = self._path(section[key])
        return {'name': 'train', **section}

    def _path(self, path):
        path = os.path.expanduser(path)
        if os.path.isabs(path):
            return path
        try:
            return os.path.relpath(os.path.abspath(path), os.path.realpath(self.folder))  # the folder may be a link
        except ValueError:  # another drive of Windows
            return os.path.abspath(path)


def read_study(path, folder=None):
    """Reads the yml of a study; keys that it lacks are taken from the yml that it names as `base`, beside it.

    Args:
        path (str | Path): The yml.
        folder (str | Path): Where it will run; `results/NAME` where not given.

    Raises:
        UserError: names the file and the key.
    """
    section = _read(Path(path))
    try:
        return Study(section, folder or Path('results', str(section.get('name'))))
    except UserError as err:
        raise UserError(f"'{path}': {err}") from err


def _read(path, seen=()):
    """The keys of a yml and of its bases."""
    if path in seen:
        raise UserError(f"'{path}': base: goes in a circle.")
    section = read_yml(path)
    if not isinstance(section, dict):
        raise UserError(f"'{path}' is not the yml of a study.")
    base = section.pop('base', None)
    return section if base is None else {**_read(path.parent / str(base), (*seen, path)), **section}


def benchmark_section(name, root, scale, color=None):
    """Options of the benchmark that udl-prepare wrote into the folder `root`, as a yml of BasicSR has them."""
    section = {'name': name, 'type': 'PairedImageDataset', 'dataroot_gt': f'{root}/GTmod{scale}',
               'dataroot_lq': f'{root}/LRbicx{scale}', 'io_backend': {'type': 'disk'}}
    return section if color is None else {**section, 'color': color}


def metrics(scale):
    """The protocol's: on Y, the border cut."""
    return {name: {'type': f'calculate_{name}', 'crop_border': scale, 'test_y_channel': True, 'better': 'higher'}
            for name in ('psnr', 'ssim')}


def run_name(network, scale, losses, seed):
    return re.sub(r'[^\w.=+-]+', '-', f'{network}_x{scale}_{"_then_".join(losses)}_seed{seed}')


def _loss_and_options(step):
    """The pixel_opt of a variant's step, and what else it says."""
    if 'pixel_opt' not in step:
        return step, {}
    return step['pixel_opt'], {key: value for key, value in step.items() if key != 'pixel_opt'}


def _short(step):
    """`L1Loss`, or `UDL-offset=0-amp=bf16` of a section with options."""
    loss, options = _loss_and_options(step)
    return '-'.join([loss['type'], *(f'{key}={value}' for section in (loss, options)
                                     for key, value in sorted(section.items()) if key != 'type')])


def _kind(loss, before, where):
    """Of which kind the network is that is trained with `loss`, when that of the step before is of kind `before`."""
    built = build_loss(loss, f'{where}: ')
    kind = 'plain' if not getattr(built, 'required_outputs', ()) else 'step 1' if built.trains_log_var else 'step 2'
    if kind == 'step 2' and before in (None, 'plain'):
        raise UserError(f'{where}: {loss["type"]} weighs by a network of step 1, and there is none before it.')
    if before == 'step 2' and kind != 'step 2':
        raise UserError(f'{where}: {loss["type"]} cannot go on from a step 2.')
    return kind


def _checked(section):
    for key in section:
        if key not in KEYS:
            raise UserError(f"'{key}' is not a key of a study{did_you_mean(key, KEYS)}; they are: base, "
                             f'{", ".join(KEYS)}.')
    for key, (kind, what) in KEYS.items():
        if key not in section and key not in OPTIONAL:
            raise UserError(f'{key}: is missing.')
        value = section.get(key)
        if key in section and (not isinstance(value, kind) or (kind in (dict, list) and not value)):
            raise UserError(f'{key}: is {what}, not {value!r}.')
    if not is_plain_name(section['name']):
        raise UserError(f'name: is a plain name of a folder, not {truncate_repr(section["name"])!r}.')
    for key in ('seeds', 'scales'):
        values = section[key]
        if not all(type(value) is int and value >= 0 for value in values) or len(set(values)) < len(values):
            raise UserError(f'{key}: is {KEYS[key][1]}, not {values!r}.')
    if section.get('num_gpu', 'auto') not in ('auto', 0, 1):
        raise UserError(f'num_gpu: {section["num_gpu"]}: each training of a study has one GPU at most; write auto or '
                         '0, and --jobs for several at once.')
    for name, root in section['benchmarks'].items():
        if not isinstance(root, str):
            raise UserError(f'benchmarks: {name}: is a folder that udl-prepare benchmark wrote, not {root!r}.')
    for key in ('networks', 'variants'):
        for name, value in section[key].items():
            _check_numbers(value, f'{key}: {name}: ')
    for name, network in section['networks'].items():
        if not isinstance(network, dict) or 'type' not in network or {'upscale', 'scale'} & network.keys():
            raise UserError(f'networks: {name}: is the section of a plain network, with a type and without its scale, '
                             f'which scales: tells, not {network!r}.')
        if 'debug' in str(name):
            raise UserError(f"networks: {name}: BasicSR takes what has 'debug' in its name for a trial; rename it.")
    for step, train in enumerate(section['steps'], 1):
        if not isinstance(train, dict) or type(train.get('total_iter')) is not int or 'pixel_opt' in train:
            raise UserError(f'steps: number {step} is what stands under train: in a yml of BasicSR, with a whole '
                             f'number total_iter and without pixel_opt, which variants: has, not {train!r}.')
        _check_numbers(train, f'steps: number {step}: ')
    for name, losses in section['variants'].items():
        if not isinstance(losses, list) or not 0 < len(losses) <= len(section['steps']) \
                or not all(map(_is_step, losses)):
            raise UserError(f'variants: {name}: is a list with the pixel_opt of each step, {len(section["steps"])} at '
                             f'most, or with sections of pixel_opt, options of train: other than total_iter, and '
                             f'{CACHED}: true, not {losses!r}.')
    if section['baseline'] not in section['variants']:
        raise UserError(f"baseline: '{section['baseline']}' is none of the variants: "
                         f"{', '.join(section['variants'])}.")
    if max(map(len, section['variants'].values())) > len(section['variants'][section['baseline']]):
        raise UserError(f'baseline: {section["baseline"]} has fewer steps than other variants; they are compared '
                         'after equal iterations.')
    val = section['val']
    if val.keys() != {'benchmark', 'val_freq'} or not isinstance(val['benchmark'], str) \
            or val['benchmark'] not in section['benchmarks']:
        raise UserError(f'val: has benchmark, one of {", ".join(section["benchmarks"])}, and val_freq, and no other '
                         f'key: not {section["val"]!r}.')
    train = section['datasets'].get('train')
    if section['datasets'].keys() != {'train'} or not isinstance(train, dict) or type(train.get('lq_size')) is not int \
            or 'gt_size' in train or not all(isinstance(train.get(key), str) for key in ('dataroot_gt', 'dataroot_lq')):
        raise UserError('datasets: has train:, as in a yml of BasicSR with dataroot_gt and dataroot_lq, but with '
                         'lq_size, for all scales, in place of gt_size; and no other key.')
    for name in section.get('logger') or {}:
        if name not in LOGGER:
            raise UserError(f"logger: '{name}' is not an option of a study{did_you_mean(name, LOGGER)}; they are: "
                             f"{', '.join(LOGGER)}.")
    return section


def _is_step(step):
    if not isinstance(step, dict):
        return False
    loss, options = _loss_and_options(step)
    return (isinstance(loss, dict) and isinstance(loss.get('type'), str) and 'total_iter' not in options
            and options.get(CACHED, False) in (True, False))


def _check_numbers(section, where):
    pairs = section.items() if isinstance(section, dict) else enumerate(section, 1) if isinstance(section, list) else ()
    for key, value in pairs:
        if isinstance(value, (dict, list)):
            _check_numbers(value, f'{where}{key}: ')
        elif isinstance(value, str) and re.fullmatch(r'[\d.]+[eE][-+]?\d+', value):
            raise UserError(f"{where}{key}: '{value}' is a string to yml; write !!float {value}.")
