"""Networks side by side on benchmarks: scores, cost, crops, and how good their uncertainty maps are."""
import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np
from basicsr.utils import img2tensor
from torch.nn import functional as F

from udl_plugin.archs.build import build_network, probe_shapes
from udl_plugin.archs.padding import get_required_multiple
from udl_plugin.archs.two_step import TwoStep
from udl_plugin.archs.with_variance import WithVariance
from udl_plugin.archs.wrapping import base_config
from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.checkpoints.state_dict import load_matching_state_dict, save_checkpoint
from udl_plugin.config.cross_checks import check_options
from udl_plugin.config.dataset_checks import check_pairs
from udl_plugin.config.schema import dataset_problems
from udl_plugin.config.yaml_loader import read_yml
from udl_plugin.errors import UserError, did_you_mean, raise_errors
from udl_plugin.inference import cost
from udl_plugin.metrics import uncertainty_metrics as metrics
from udl_plugin.studies.config import benchmark_section
from udl_plugin.studies.evaluate import (
    careful_test_set,
    evaluate,
    evaluate_bicubic,
    for_test,
    name_of,
    scores_of,
    test_options,
)

BICUBIC = 'bicubic'


class Entry(NamedTuple):
    """A network to be compared.

    Attributes:
        label (str): Its name in the tables.
        opt (dict): Test options, without data sets.
        net (nn.Module): The plain network, with its weights, on the CPU.
        network_g (dict): Its section.
        channels (int): Of its images; of one, it is given Y.
        has_map (bool): Whether the network in `opt` gives one.
    """

    label: str
    opt: dict
    net: object
    network_g: dict
    channels: int
    has_map: bool


class Result:
    """What an entry, or bicubic, came to.

    Attributes:
        label (str): Of the entry.
        scores (dict): Benchmark to image to `Scores`.
        cost (dict): `params`, `madds`, `time` (s), `memory` (bytes).
        shown (Image | None): What became of the image of which crops are shown.
        maps, gradients (dict): Benchmark to image to `MapQuality`: of the network's map, and of the gradient's
            magnitude of its SR image in the map's place.
    """

    def __init__(self, label):
        self.label, self.scores, self.cost, self.shown = label, {}, {}, None
        self.maps, self.gradients = {}, {}

    def mean(self, benchmark, number):
        return statistics.fmean(scores[number] for scores in self.scores[benchmark].values())

    def key(self, name):
        """For sorting; the best first."""
        if name in ('psnr', 'ssim'):
            number = ('psnr', 'ssim').index(name)
            return -statistics.fmean(self.mean(benchmark, number) for benchmark in self.scores)
        return self.cost.get(name) or 0


class MapQuality(NamedTuple):
    """Of one image. `curve` is the sparsification curve, `oracle` that of the error itself."""

    spearman: float
    pearson: float
    ause: float
    calibration: float
    gini: float
    hoyer: float
    curve: np.ndarray
    oracle: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray


def quality_of(sr, gt, log_var, border, loss='ESU'):
    """`MapQuality` of a map that was trained with `loss`; of the SR image's own gradient, where `log_var` is None."""
    if log_var is None:
        planes = np.atleast_3d(sr)[:, :, ::-1].transpose(2, 0, 1).astype(np.float64)
        uncertainty, error = metrics.samples(sr, gt, np.hypot(*np.gradient(planes, axis=(1, 2))), border)
        nothing = np.full(1, np.nan)
        linear, calibration, sparsity, bins = uncertainty, np.nan, (np.nan, np.nan), (nothing, nothing)
    else:
        uncertainty, error = metrics.samples(sr, gt, log_var, border)
        linear, bins = metrics.expected_error(uncertainty, loss), metrics.reliability(uncertainty, error, loss)
        weight = metrics.step2_weight(metrics.crop(log_var, border))
        calibration, sparsity = metrics.normalised_error(*bins), (metrics.gini(weight), metrics.hoyer(weight))
    curve, oracle = metrics.sparsification(uncertainty, error), metrics.sparsification(error, error)
    return MapQuality(metrics.spearman(uncertainty, error), metrics.pearson(linear, error),
                      metrics.sparsification_area(curve, oracle), calibration, *sparsity, curve, oracle, *bins)


# ---- what is compared

def read_entries(inputs, folder):
    """Reads test ymls and checkpoints.

    Args:
        inputs (list[str]): Paths, each with a label and `=` before it where wanted.
        folder (str | Path): For checkpoints of other layouts than BasicSR's.

    Returns:
        tuple[list[Entry], dict, int | None]: The entries; the data sets that the ymls name, name to section; the scale.

    Raises:
        UserError: names the input.
    """
    entries, datasets, scales = [], {}, {}
    for number, text in enumerate(inputs):
        label, _, path = text.partition('=') if '=' in text and not Path(text).exists() else ('', '', text)
        try:
            entry, own_datasets = (_from_yml if Path(path).suffix in ('.yml', '.yaml') else _from_checkpoint)(
                path, label, Path(folder, f'{number}.pth'))
        except UserError as err:
            raise UserError(str(err) if path in str(err) else f"'{path}': {err}") from err
        for name, section in own_datasets.items():
            if datasets.setdefault(name, section) != section:
                raise UserError(f"'{path}': its data set {name} is another than that of a yml before it; name the "
                                 'benchmarks with --sets.')
        scales.setdefault(entry.opt['scale'], path)
        entries.append(entry)
    if len(scales) > 1:
        (one, path), (two, other) = list(scales.items())[:2]
        raise UserError(f"'{path}' is of scale {one} and '{other}' of scale {two}; compare one scale at a time.")
    return _with_own_labels(entries), datasets, next(iter(scales), None)


def _with_own_labels(entries):
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1 or label == BICUBIC:
            raise UserError(f"the label '{label}' is taken; give others: LABEL=FILE.")
    return entries


def _from_yml(path, label, _):
    opt = read_yml(path)
    if not isinstance(opt, dict) or 'train' in opt:
        raise UserError(f"'{path}' is not the yml of a test, such as options/test_udl.yml; of a training, name the "
                         'checkpoint.')
    for key, kind in (('name', str), ('scale', int), ('network_g', dict), ('path', dict)):
        if not isinstance(opt.get(key), kind):
            raise UserError(f"'{path}': {key}: is missing, or not what BasicSR has there.")
    if not isinstance(opt['path'].get('pretrain_network_g'), str):
        raise UserError(f"'{path}': path: pretrain_network_g: is missing: there is nothing to test.")
    sections = opt.get('datasets') or {}
    if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
        raise UserError(f"'{path}': datasets: holds sections, each with a name.")
    raise_errors(f"'{path}': {problem.message}" for phase, section in sections.items()
              for problem in dataset_problems(str(phase), section, is_train=False))
    datasets = {section['name']: section for section in sections.values()}
    opt = {**test_options(opt['name'], opt['network_g'], opt['path'], opt['scale'], []),
           'model_type': opt.get('model_type', 'UDLModel')}
    check_options(opt)
    net = build_network(opt['network_g'])
    own = opt['path']
    state_dict, _, mismatch = load_matching_state_dict(net, own['pretrain_network_g'], own.get('param_key_g', 'params'),
                                           own.get('strict_load_g', True))
    if not mismatch:
        net.load_state_dict(state_dict)
    return _entry(label or opt['name'], opt, net), datasets


def _from_checkpoint(path, label, copy):
    model = load_network_file(path)
    save_checkpoint(copy, {'params': model.state_dict}, model.network_g)
    file = Path(path).resolve()
    if file.parent.name == 'models' and file.parts[-4:-3] == ('experiments',):  # BasicSR's places
        file = file.parent.parent
    label = label or file.stem
    opt = test_options(label, model.network_g, {'pretrain_network_g': str(copy)}, model.channels_and_scale[1], [])
    return _entry(label, opt, model.build()), {}


def _entry(label, opt, net):
    has_map = opt['model_type'] == 'UDLModel' and isinstance(net, (TwoStep, WithVariance))
    net = net.sr_net if isinstance(net, TwoStep) else net.backbone if isinstance(net, WithVariance) else net
    return Entry(label, opt, net.eval(), base_config(opt['network_g']), probe_shapes(net)[0][1], has_map)


def find_benchmarks(sets, datasets, scale):
    """Sections of the data sets to test on, checked.

    Args:
        sets (list[str]): Folders that udl-prepare wrote; empty: `datasets`.
        datasets (dict): From `read_entries`.
        scale (int): Of the networks.

    Raises:
        UserError: there are none, or they do not fit the scale.
    """
    found = [benchmark_section(Path(root).resolve().name, root, scale) for root in sets] or list(datasets.values())
    names = [section['name'] for section in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f'--sets: two benchmarks are called {name}; rename a folder.')
    if not found:
        raise UserError('--sets: is missing: folders that udl-prepare wrote, --sets datasets/Set5 datasets/Set14.')
    for section in found:
        check_pairs(for_test(section, scale), ('--sets: ' if sets else '') + section['name'])
    return found


class Shown(NamedTuple):
    """The image of which crops are shown: its benchmark, its name, height and width of its ground truth."""

    benchmark: str
    name: str
    height: int
    width: int


def find_shown(name, benchmarks, scale):
    """The image that is asked for; without a name, the first of the first benchmark.

    Raises:
        UserError: there is none of that name.
    """
    known = {}
    for section in benchmarks:
        dataset = careful_test_set(section, scale)
        own = {name_of(paths['lq_path']): number for number, paths in enumerate(dataset.paths)}
        for image, number in sorted(own.items()):
            known.setdefault(image, (section['name'], dataset, number))
    if name is not None and name not in known:
        raise UserError(f"--image: there is no '{name}' in the benchmarks{did_you_mean(name, known)}.")
    name = next(iter(known)) if name is None else name
    benchmark, dataset, number = known[name]
    return Shown(benchmark, name, *dataset[number]['gt'].shape[1:])


# ---- comparing

def compare(entries, benchmarks, scale, shown, uncertainty=False, losses=None, progress=None):
    """Tests the entries and bicubic on the benchmarks and measures what they cost.

    Args:
        entries (list[Entry]): Of one scale.
        benchmarks (list[dict]): Sections of data sets.
        scale (int): Theirs.
        shown (Shown): The image of which crops are wanted.
        uncertainty (bool): Whether maps are rated.
        losses (dict): Label to the loss that its map was trained with, where it is not ESU.
        progress (Callable): Called as `progress(entries, number)`, to be iterated over in their place: a progress bar.

    Returns:
        list[Result]: Bicubic first.
    """
    results = [Result(BICUBIC), *(Result(entry.label) for entry in entries)]

    def recorder(result, entry=None):
        def on_image(set_name, image):
            result.scores.setdefault(set_name, {})[image.name] = scores_of(image.sr, image.gt, scale)
            if (set_name, image.name) == shown[:2]:
                result.shown = image
            if uncertainty and entry is not None and entry.has_map:
                loss = (losses or {}).get(entry.label, 'ESU')
                for log_var, into in ((image.log_var, result.maps), (None, result.gradients)):
                    into.setdefault(set_name, {})[image.name] = quality_of(image.sr, image.gt, log_var, scale, loss)
        return on_image

    evaluate_bicubic(benchmarks, scale, recorder(results[0]))
    pairs = list(zip(results[1:], entries))
    for result, entry in progress(pairs, len(pairs)) if progress else pairs:
        color = {'color': 'y'} if entry.channels == 1 else {}
        datasets = {f'test_{number}': for_test({**section, **color}, scale)
                    for number, section in enumerate(benchmarks)}
        evaluate({**entry.opt, 'datasets': datasets}, recorder(result, entry), uncertainty=entry.has_map)
    _measure(results, entries, scale)
    return results


def _measure(results, entries, scale):
    lq = img2tensor(np.atleast_3d(results[0].shown.lq) / 255.).float().unsqueeze(0)
    functions = {BICUBIC: lambda lq: F.interpolate(lq, scale_factor=scale, mode='bicubic', antialias=True)}
    for result, entry in zip(results[1:], entries):
        functions[result.label] = _padded(entry, get_required_multiple(entry.network_g))
        result.cost['params'] = cost.parameters(entry.net)
        result.cost['madds'] = cost.multiply_adds(entry.net, entry.network_g, entry.channels, scale)
        result.cost['memory'] = cost.peak_memory(entry.network_g, (1, entry.channels, *lq.shape[2:]))
    for label, seconds in cost.time_in_turn(functions, lq).items():
        next(result for result in results if result.label == label).cost['time'] = seconds


def _padded(entry, multiple):
    def run(lq):
        lq = F.pad(lq[:, :entry.channels], (0, -lq.shape[3] % multiple, 0, -lq.shape[2] % multiple), mode='replicate')
        return entry.net.to(lq.device)(lq)
    return run
