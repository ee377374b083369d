"""Networks side by side on benchmarks: scores, cost, crops, and the quality of their uncertainty maps."""
from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from basicsr.utils import img2tensor
from torch import Tensor, nn
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
from udl_plugin.config.schema import validate_dataset
from udl_plugin.config.yaml_loader import read_yml
from udl_plugin.errors import UserError, UserErrors, did_you_mean, raise_errors
from udl_plugin.inference import cost
from udl_plugin.metrics import uncertainty_metrics as metrics
from udl_plugin.studies.config import Config, build_benchmark_opt
from udl_plugin.studies.evaluate import (
    ImageResult,
    OnImage,
    build_test_opt,
    build_test_set,
    complete_dataset_opt,
    compute_scores,
    evaluate,
    evaluate_bicubic,
    get_image_name,
)

BICUBIC = 'bicubic'


class Entry(NamedTuple):
    """A network to be compared.

    Attributes:
        label: Its name in the tables.
        opt: Test options without datasets.
        net: The base network with its weights, on the CPU.
        network_g: The base network's config.
        channels: Of its images. A network with one channel gets Y.
        has_map: Whether the network in `opt` returns an uncertainty map.
    """

    label: str
    opt: Config
    net: nn.Module
    network_g: Config
    channels: int
    has_map: bool


@dataclass(frozen=True)
class MapQuality:
    """Of the uncertainty map of one image. `curve` is its sparsification curve, `oracle` that of the error itself;
    `predicted` and `observed` are mean errors of the bins of the reliability diagram.
    """

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


@dataclass
class CompareResult:
    """The results of an entry, or of bicubic.

    Attributes:
        label: Of the entry.
        scores: Benchmark to image to metric.
        cost: `params`, `madds`, `time` (s) and `memory` (bytes).
        sample: The image of which crops are drawn.
        maps, gradients: Benchmark to image to quality: of the network's map, and of the gradient magnitude of its SR
            image used as a map.
    """

    label: str
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    cost: dict[str, float | None] = field(default_factory=dict)
    sample: ImageResult = field(init=False, repr=False)
    maps: dict[str, dict[str, MapQuality]] = field(default_factory=dict)
    gradients: dict[str, dict[str, MapQuality]] = field(default_factory=dict)

    def mean(self, benchmark: str, metric: str) -> float:
        """The mean of `psnr` or `ssim` over the images of a benchmark."""
        return statistics.fmean(scores[metric] for scores in self.scores[benchmark].values())

    def sort_key(self, name: str) -> float:
        """Sorts by a metric or a cost, the best first."""
        if name in ('psnr', 'ssim'):
            return -statistics.fmean(self.mean(benchmark, name) for benchmark in self.scores)
        return self.cost.get(name) or 0


def rate_map(sr: np.ndarray, gt: np.ndarray, log_var: np.ndarray | None, border: int, loss: str = 'ESU') -> MapQuality:
    """The quality of a map that was trained with `loss`; without a map, of the SR image's own gradient."""
    if log_var is None:
        planes = np.atleast_3d(sr)[:, :, ::-1].transpose(2, 0, 1).astype(np.float64)
        uncertainty, error = metrics.samples(sr, gt, np.hypot(*np.gradient(planes, axis=(1, 2))), border)
        predicted = observed = np.full(1, np.nan)
        linear, calibration, gini, hoyer = uncertainty, np.nan, np.nan, np.nan
    else:
        uncertainty, error = metrics.samples(sr, gt, log_var, border)
        linear = metrics.expected_error(uncertainty, loss)
        predicted, observed = metrics.reliability(uncertainty, error, loss)
        calibration = metrics.normalised_error(predicted, observed)
        weight = metrics.step2_weight(metrics.crop(log_var, border))
        gini, hoyer = metrics.gini(weight), metrics.hoyer(weight)
    curve, oracle = metrics.sparsification(uncertainty, error), metrics.sparsification(error, error)
    return MapQuality(
        spearman=metrics.spearman(uncertainty, error), pearson=metrics.pearson(linear, error),
        ause=metrics.sparsification_area(curve, oracle), calibration=calibration, gini=gini, hoyer=hoyer,
        curve=curve, oracle=oracle, predicted=predicted, observed=observed)


# ---- what is compared

def read_entries(inputs: Iterable[str], folder: str | Path) -> tuple[list[Entry], dict[str, Config], int]:
    """Reads test ymls and checkpoints.

    Args:
        inputs: One or more of FILE or LABEL=FILE.
        folder: Where copies of checkpoints in BasicSR's layout are written.

    Returns:
        The entries; the options of the datasets in the ymls, by name; the scale.

    Raises:
        UserError: names the input.
    """
    entries: list[Entry] = []
    datasets: dict[str, Config] = {}
    scales: dict[int, str] = {}
    for number, text in enumerate(inputs):
        label, _, path = text.partition('=') if '=' in text and not Path(text).exists() else ('', '', text)
        try:
            entry, own_datasets = _read_yml_entry(path, label) if Path(path).suffix in ('.yml', '.yaml') else \
                (_read_checkpoint_entry(path, label, Path(folder, f'{number}.pth')), {})
        except UserError as err:
            raise UserErrors(message if path in message else f"'{path}': {message}"
                             for message in err.messages) from err
        for name, dataset_opt in own_datasets.items():
            if datasets.setdefault(name, dataset_opt) != dataset_opt:
                raise UserError(f"'{path}': its dataset {name} differs from the one of that name in another yml. Name "
                                'the benchmarks with --sets.')
        scales.setdefault(entry.opt['scale'], path)
        entries.append(entry)
    if len(scales) > 1:
        (scale, path), (other_scale, other_path) = list(scales.items())[:2]
        raise UserError(f"'{path}' has scale {scale} and '{other_path}' has scale {other_scale}; compare networks of "
                        'one scale.')
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1 or label == BICUBIC:
            raise UserError(f"the label '{label}' is used twice; choose other labels with LABEL=FILE.")
    return entries, datasets, next(iter(scales))


def _read_yml_entry(path: str, label: str) -> tuple[Entry, dict[str, Config]]:
    opt = read_yml(path)
    if 'train' in opt:
        raise UserError(f"'{path}' is not the yml of a test, such as options/test_udl.yml; for a training, give its "
                        'checkpoint.')
    for key, kind, what in (('name', str, 'a string'), ('scale', int, 'an integer'), ('network_g', dict, 'a mapping'),
                            ('path', dict, 'a mapping')):
        if not isinstance(opt.get(key), kind):
            raise UserError(f"'{path}': {key}: is missing, or not {what}.")
    if not isinstance(opt['path'].get('pretrain_network_g'), str):
        raise UserError(f"'{path}': path.pretrain_network_g: is missing; there is no network to test.")
    sections = opt.get('datasets') or {}
    if not isinstance(sections, dict) or not all(isinstance(dataset_opt, dict) for dataset_opt in sections.values()):
        raise UserError(f"'{path}': datasets: expected mappings, each with the options of a dataset.")
    raise_errors(error for phase, dataset_opt in sections.items()
                 for error in validate_dataset(str(phase), dataset_opt, is_train=False))
    opt = {**build_test_opt(opt['name'], opt['network_g'], opt['path'], opt['scale'], []),
           'model_type': opt.get('model_type', 'UDLModel')}
    check_options(opt)
    net, own = build_network(opt['network_g']), opt['path']
    state_dict, _, mismatch = load_matching_state_dict(
        net, own['pretrain_network_g'], own.get('param_key_g', 'params'), own.get('strict_load_g', True))
    if not mismatch:
        net.load_state_dict(state_dict)
    datasets = {dataset_opt['name']: dataset_opt for dataset_opt in sections.values()}
    return _build_entry(label or opt['name'], opt, net), datasets


def _read_checkpoint_entry(path: str, label: str, copy: Path) -> Entry:
    network_file = load_network_file(path)
    save_checkpoint(copy, {'params': network_file.state_dict}, network_file.network_g)
    file = Path(path).resolve()
    if file.parent.name == 'models' and file.parts[-4:-3] == ('experiments',):  # BasicSR's experiments/NAME/models
        file = file.parent.parent
    label, scale = label or file.stem, network_file.channels_and_scale[1]
    opt = build_test_opt(label, network_file.network_g, {'pretrain_network_g': str(copy)}, scale, [])
    return _build_entry(label, opt, network_file.build())


def _build_entry(label: str, opt: Config, net: nn.Module) -> Entry:
    has_map = opt['model_type'] == 'UDLModel' and isinstance(net, (TwoStep, WithVariance))
    net = net.sr_net if isinstance(net, TwoStep) else net.backbone if isinstance(net, WithVariance) else net
    return Entry(label, opt, net.eval(), base_config(opt['network_g']), probe_shapes(net)[0][1], has_map)


def find_benchmarks(sets: Sequence[str], datasets: Mapping[str, Config], scale: int) -> list[Config]:
    """Options of the datasets to test on, checked.

    Args:
        sets: Folders that `udl-prepare benchmark` wrote; if empty, `datasets` are used.
        datasets: From `read_entries`.
        scale: Of the networks.

    Raises:
        UserError: there is none, or one does not match the scale.
    """
    found = [build_benchmark_opt(Path(root).resolve().name, root, scale) for root in sets] or list(datasets.values())
    names = [dataset_opt['name'] for dataset_opt in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f'--sets: two benchmarks are called {name}; rename a folder.')
    if not found:
        raise UserError('--sets: is missing; give folders that `udl-prepare benchmark` wrote, such as --sets '
                        'datasets/Set5 datasets/Set14.')
    for dataset_opt in found:
        check_pairs(complete_dataset_opt(dataset_opt, scale), (('--sets ' if sets else '') + dataset_opt['name'],))
    return found


class Sample(NamedTuple):
    """The image of which crops are drawn: its benchmark, its name, height and width of its ground truth."""

    benchmark: str
    name: str
    height: int
    width: int


def find_sample(name: str | None, benchmarks: Iterable[Config], scale: int) -> Sample:
    """The image of that name; without a name, the first of the first benchmark.

    Raises:
        UserError: there is none of that name.
    """
    known: dict[str, tuple[str, Any, int]] = {}
    for dataset_opt in benchmarks:
        dataset = build_test_set(dataset_opt, scale)
        own = {get_image_name(paths['lq_path']): number for number, paths in enumerate(dataset.paths)}
        for image, number in sorted(own.items()):
            known.setdefault(image, (dataset_opt['name'], dataset, number))
    if name is not None and name not in known:
        raise UserError(f"--image: there is no '{name}' in the benchmarks{did_you_mean(name, known)}.")
    name = next(iter(known)) if name is None else name
    benchmark, dataset, number = known[name]
    return Sample(benchmark, name, *dataset[number]['gt'].shape[1:])


# ---- comparing

def compare(entries: Sequence[Entry], benchmarks: Sequence[Config], scale: int, sample: Sample,
            uncertainty: bool = False, losses: Mapping[str, str] | None = None,
            progress: Callable[[list, int], Iterable] | None = None) -> list[CompareResult]:
    """Tests the entries and bicubic on the benchmarks, and measures what they cost.

    Args:
        entries: Of one scale.
        benchmarks: Options of datasets.
        scale: Theirs.
        sample: The image of which crops are drawn.
        uncertainty: Whether maps are rated.
        losses: Label to the loss that its map was trained with, if that is not ESU.
        progress: Called as `progress(items, count)`; returns an iterable over the items, such as a progress bar.

    Returns:
        The results, with bicubic first.
    """
    results = [CompareResult(BICUBIC), *(CompareResult(entry.label) for entry in entries)]

    def recorder(result: CompareResult, entry: Entry | None = None) -> OnImage:
        def on_image(set_name: str, image: ImageResult) -> None:
            result.scores.setdefault(set_name, {})[image.name] = compute_scores(image.sr, image.gt, scale)
            if (set_name, image.name) == (sample.benchmark, sample.name):
                result.sample = image
            if uncertainty and entry is not None and entry.has_map:
                loss = (losses or {}).get(entry.label, 'ESU')
                for log_var, ratings in ((image.log_var, result.maps), (None, result.gradients)):
                    ratings.setdefault(set_name, {})[image.name] = rate_map(image.sr, image.gt, log_var, scale, loss)
        return on_image

    evaluate_bicubic(benchmarks, scale, recorder(results[0]))
    pairs = list(zip(results[1:], entries))
    for result, entry in progress(pairs, len(pairs)) if progress else pairs:
        color = {'color': 'y'} if entry.channels == 1 else {}
        datasets = {f'test_{number}': complete_dataset_opt({**dataset_opt, **color}, scale)
                    for number, dataset_opt in enumerate(benchmarks)}
        evaluate({**entry.opt, 'datasets': datasets}, recorder(result, entry), uncertainty=entry.has_map)
    _measure_cost(results, entries, scale)
    return results


def _measure_cost(results: Sequence[CompareResult], entries: Sequence[Entry], scale: int) -> None:
    lq = img2tensor(np.atleast_3d(results[0].sample.lq) / 255.).float().unsqueeze(0)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        BICUBIC: lambda lq: F.interpolate(lq, scale_factor=scale, mode='bicubic', antialias=True)}
    for result, entry in zip(results[1:], entries):
        functions[result.label] = _pad_input(entry, get_required_multiple(entry.network_g))
        result.cost['params'] = cost.parameters(entry.net)
        result.cost['madds'] = cost.multiply_adds(entry.net, entry.network_g, entry.channels, scale)
        result.cost['memory'] = cost.peak_memory(entry.network_g, (1, entry.channels, *lq.shape[2:]))
    for result, seconds in zip(results, cost.time_in_turn(functions, lq).values()):
        result.cost['time'] = seconds


def _pad_input(entry: Entry, multiple: int) -> Callable[[Tensor], Tensor]:
    def run(lq: Tensor) -> Tensor:
        lq = F.pad(lq[:, :entry.channels], (0, -lq.shape[3] % multiple, 0, -lq.shape[2] % multiple), mode='replicate')
        return entry.net.to(lq.device)(lq)
    return run
