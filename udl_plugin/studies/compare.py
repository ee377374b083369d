"""Networks side by side on benchmarks: scores, cost, crops, and the quality of their uncertainty maps."""
from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from basicsr.utils import get_root_logger, img2tensor
from torch import Tensor, nn
from torch.nn import functional as F

from udl_plugin.archs.build import build_network, get_network_class, probe_shapes
from udl_plugin.archs.outputs import get_sr_image
from udl_plugin.archs.padding import get_required_multiple, pad_to_multiple
from udl_plugin.archs.two_step import TwoStep
from udl_plugin.archs.with_variance import WithVariance
from udl_plugin.archs.wrapping import base_config
from udl_plugin.checkpoints.network_file import find_error_loss, load_network_file
from udl_plugin.checkpoints.safe_load import load_checkpoint
from udl_plugin.checkpoints.state_dict import DEFAULT_KEY, get_error_scale, get_uncertainty_loss, save_checkpoint
from udl_plugin.config.class_options import is_udl_model
from udl_plugin.config.cross_checks import check_network, check_options
from udl_plugin.config.dataset_checks import check_pairs
from udl_plugin.config.schema import validate_file
from udl_plugin.config.yaml_loader import read_yml
from udl_plugin.errors import UserError, UserErrors, did_you_mean, raise_errors
from udl_plugin.inference import cost
from udl_plugin.inference.tiles import find_overlap, get_receptive_radius, run_in_tiles
from udl_plugin.inference.visualize import describe_owner
from udl_plugin.metrics import uncertainty_metrics as metrics
from udl_plugin.studies.config import METRICS, Config, build_benchmark_opt
from udl_plugin.studies.evaluate import (
    ImageResult,
    Scores,
    build_test_opt,
    build_test_set,
    complete_dataset_opt,
    evaluate,
    evaluate_bicubic,
    mean_score,
)
from udl_plugin.utils.user_imports import get_imports, import_user_modules

BICUBIC = 'bicubic'


class Entry(NamedTuple):
    """A network to be compared.

    Attributes:
        label: Its name in the tables.
        opt: Test options without datasets.
        net: The base network, to measure its cost, on the CPU.
        channels: Of its images. A network with one channel gets Y.
        has_map: Whether the network in `opt` returns an uncertainty map.
        files: That it was read from.
        recorded_loss: Loss that its variance head was trained with, as far as the checkpoint records it.
        loss: Loss whose formula turns its map into the expected error.
        error_scale: Factor on the expected error, from a calibration.
        stage: `plain`, `step 1` or `step 2`.
    """

    label: str
    opt: Config
    net: nn.Module
    channels: int
    has_map: bool
    files: tuple[str, ...] = ()
    recorded_loss: str | None = None
    loss: str = 'ESU'
    error_scale: float = 1.0
    stage: str = 'plain'

    @property
    def owner(self) -> str:
        """Whose errors its map describes."""
        return describe_owner(self.stage, self.error_scale)

    def run(self, lq: Tensor) -> Tensor:
        """The SR image of `(1, C, H, W)`, which is padded to the required multiple; in tiles if `opt` says so."""
        tile, scale, network_g = self.opt['val']['tile'], self.opt['scale'], self.opt['network_g']
        if not tile:
            return self._run_image(lq)
        return run_in_tiles(self._run_image, lq, scale, tile, find_overlap(tile, get_receptive_radius(network_g))[0])

    def _run_image(self, lq: Tensor) -> Tensor:
        height, width = (self.opt['scale'] * length for length in lq.shape[2:])
        padded = pad_to_multiple(lq[:, :self.channels], get_required_multiple(self.opt['network_g']))
        return get_sr_image(self.net.to(lq.device)(padded))[:, :, :height, :width]


class MapQuality(NamedTuple):
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
        entry: None for bicubic.
        cost: `params`, `madds`, `time` (s) and `memory` (bytes).
        sample: The image of which crops are drawn.
        maps, gradients: Benchmark to image to quality: of the network's map, and of the gradient magnitude of its SR
            image used as a map.
    """

    label: str
    entry: Entry | None = None
    scores: Scores = field(default_factory=dict)
    cost: dict[str, float | None] = field(default_factory=dict)
    sample: ImageResult = field(init=False, repr=False)
    maps: dict[str, dict[str, MapQuality]] = field(default_factory=dict)
    gradients: dict[str, dict[str, MapQuality]] = field(default_factory=dict)

    def mean(self, benchmark: str, metric: str) -> float:
        """The mean of `psnr` or `ssim` over the images of a benchmark."""
        return mean_score(self.scores[benchmark], metric)

    def expected_error(self) -> np.ndarray | None:
        """Of `sample`: the mean of the channels, `(H, W)`, in 8-bit levels. None without a map."""
        if self.entry is None or self.sample.log_var is None:
            return None
        return metrics.expected_error(self.sample.log_var, self.entry.loss, self.entry.error_scale).mean(axis=0)

    def sort_key(self, name: str) -> float:
        """Sorts by a metric or a cost, the best first."""
        if name in METRICS:
            return -statistics.fmean(self.mean(benchmark, name) for benchmark in self.scores)
        return self.cost.get(name) or 0


def rate_map(sr: np.ndarray, gt: np.ndarray, log_var: np.ndarray | None, border: int, loss: str = 'ESU',
             error_scale: float = 1.0) -> MapQuality:
    """The quality of a map; without a map, of the SR image's own gradient.

    Args:
        sr, gt: uint8 `(H, W, 3)`, BGR, or `(H, W)`.
        log_var: `(C, H, W)`.
        border: Pixels to crop.
        loss, error_scale: Of the map; see `Entry`.
    """
    if log_var is None:
        planes = np.atleast_3d(sr)[:, :, ::-1].transpose(2, 0, 1).astype(np.float64)
        uncertainty, error = metrics.samples(sr, gt, np.hypot(*np.gradient(planes, axis=(1, 2))), border)
        predicted = observed = np.full(1, np.nan)
        linear, calibration, gini, hoyer = uncertainty, np.nan, np.nan, np.nan
    else:
        uncertainty, error = metrics.samples(sr, gt, log_var, border)
        linear = metrics.expected_error(uncertainty, loss)
        predicted, observed = metrics.reliability(uncertainty, error, loss)
        predicted = error_scale * predicted
        calibration = metrics.normalised_error(predicted, observed)
        weight = metrics.step2_weight(metrics.crop(log_var, border))
        gini, hoyer = metrics.gini(weight), metrics.hoyer(weight)
    curve, oracle = metrics.sparsification(uncertainty, error), metrics.sparsification(error, error)
    return MapQuality(
        spearman=metrics.spearman(uncertainty, error), pearson=metrics.pearson(linear, error),
        ause=metrics.sparsification_area(curve, oracle), calibration=calibration, gini=gini, hoyer=hoyer,
        curve=curve, oracle=oracle, predicted=predicted, observed=observed)


# ---- what is compared

def split_label(text: str) -> tuple[str, str]:
    """Returns label and path of LABEL=FILE; of FILE, an empty label."""
    label, _, path = text.partition('=') if '=' in text and not Path(text).exists() else ('', '', text)
    return label, path


def read_entries(inputs: Iterable[str], folder: str | Path,
                 networks: Mapping[str, Config | None] | None = None, tile: int | None = None,
                 losses: Mapping[str, str] | None = None) -> tuple[list[Entry], dict[str, Config], int]:
    """Reads test ymls and checkpoints.

    Args:
        inputs: One or more of FILE or LABEL=FILE.
        folder: Where copies of checkpoints in BasicSR's layout are written.
        networks: Label to config of the network, for checkpoints that do not record it; under an empty label, that of
            all other checkpoints.
        tile: Largest side of what a network processes at once, in LR pixels; None: the full image.
        losses: Label to the loss that trained its variance head, for checkpoints that do not record it.

    Returns:
        The entries; the options of the datasets in the ymls, by name, of which the first counts; the scale.

    Raises:
        UserError: names the input; or `networks` or `losses` has a label that no input has; or a checkpoint records
            another loss.
    """
    networks, losses = networks or {}, losses or {}
    entries: dict[str, Entry] = {}
    datasets: dict[str, Config] = {}
    for number, text in enumerate(inputs):
        label, path = split_label(text)
        try:
            if Path(path).suffix in ('.yml', '.yaml'):
                opt = _read_test_yml(path, tile)
            else:
                network_g = networks.get(label or _get_name(path), networks.get(''))
                opt = _copy_checkpoint(path, Path(folder, f'{number}.pth'), network_g, tile)
            files = dict.fromkeys(name for name in (path, opt['path']['pretrain_network_g'])
                                  if not Path(name).is_relative_to(folder))
            entry = _build_entry(label or opt['name'], opt, losses)._replace(files=tuple(files))
        except UserError as err:
            raise UserErrors(message if path in message else f"'{path}': {message}"
                             for message in err.messages) from err
        for dataset_opt in opt['datasets'].values():
            datasets.setdefault(dataset_opt['name'], dataset_opt)
        if entry.label in (BICUBIC, *entries):
            raise UserError(f"the label '{entry.label}' is used twice; choose other labels with LABEL=FILE.")
        entries[entry.label] = entry
    for label in networks:
        if label not in ('', *entries):
            raise UserError(f"--opt {label}=...: there is no network '{label}'; the labels are: {', '.join(entries)}.")
    for label in losses:
        if label not in entries:
            raise UserError(f"--eu, --gaussian: there is no network '{label}'; the labels are: {', '.join(entries)}.")
    scales = {label: entry.opt['scale'] for label, entry in entries.items()}
    if len(set(scales.values())) > 1:
        found = ', '.join(f'{label} has scale {scale}' for label, scale in scales.items())
        raise UserError(f'{found}; compare networks of one scale.')
    return list(entries.values()), datasets, next(iter(scales.values()))


def _read_test_yml(path: str, tile: int | None) -> Config:
    """Its options, as `parse_options` would return them, but for the datasets, which are as in the file."""
    opt = read_yml(path)
    if 'train' in opt:
        raise UserError(f"'{path}' is not the yml of a test, such as options/test_udl.yml; for a training, give its "
                        'checkpoint.')
    import_user_modules(get_imports(opt))
    raise_errors(validate_file(opt, is_train=False))
    if not opt['path'].get('pretrain_network_g'):
        raise UserError('path.pretrain_network_g: is missing; there is no network to test.')
    complete = {**build_test_opt(opt['name'], opt['network_g'], opt['path'], opt.get('scale'), tile),
                'model_type': opt['model_type']}
    check_options(complete)
    check_network(complete)
    return {**complete, 'datasets': opt['datasets']}


def _copy_checkpoint(path: str, copy: Path, network_g: Config | None, tile: int | None) -> Config:
    """Options of a test of a checkpoint, whose weights are copied to a file in BasicSR's layout."""
    network_file = load_network_file(path, network_g=network_g)
    for note in network_file.notes:
        if DEFAULT_KEY in note:  # its advice is an option of other commands
            note = 'using params_ema, the moving average; path.param_key_g: params in a test yml selects the weights.'
        get_root_logger().warning(f"'{path}': {note}")
    save_checkpoint(copy, {'params': network_file.state_dict}, network_file.network_g, network_file.uncertainty_loss,
                    network_file.error_scale)
    return build_test_opt(_get_name(path), network_file.network_g, {'pretrain_network_g': str(copy)},
                          network_file.channels_and_scale[1], tile)


def _get_name(path: str) -> str:
    """The name of a checkpoint in the tables, unless a label is given."""
    file = Path(path).resolve()
    if file.parent.name == 'models' and file.parts[-4:-3] == ('experiments',):  # BasicSR's experiments/NAME/models
        file = file.parent.parent
    return file.stem


def _build_entry(label: str, opt: Config, losses: Mapping[str, str]) -> Entry:
    network_class = get_network_class(opt['network_g']['type'])
    has_map = is_udl_model(opt['model_type']) and issubclass(network_class, (TwoStep, WithVariance))
    net = build_network(base_config(opt['network_g'])).eval()
    entry = Entry(label, opt, net, probe_shapes(net)[0][1], has_map)
    if not has_map:
        return entry
    content, given = load_checkpoint(opt['path']['pretrain_network_g']), losses.get(label)
    recorded = get_uncertainty_loss(content)
    if recorded and given not in (None, recorded):
        raise UserError(f'its map was trained with {recorded}, as the file records; --eu and --gaussian are for files '
                        'that record no loss.')
    return entry._replace(recorded_loss=recorded, loss=given or find_error_loss(recorded)[0],
                          error_scale=get_error_scale(content),
                          stage='step 2' if issubclass(network_class, TwoStep) else 'step 1')


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
    if not found:
        raise UserError('--sets: is missing; give folders that `udl-prepare benchmark` wrote, such as --sets '
                        'datasets/Set5 datasets/Set14.')
    names = [dataset_opt['name'] for dataset_opt in found]
    for dataset_opt in found:
        name = dataset_opt['name']
        if names.count(name) > 1:
            raise UserError(f'--sets: two benchmarks are called {name}; rename a folder.')
        check_pairs(complete_dataset_opt(dataset_opt, scale), (f'--sets {name}' if sets else name,))
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
    known = set()
    for dataset_opt in benchmarks:
        dataset = build_test_set(dataset_opt, scale)
        images = sorted((Path(paths['lq_path']).stem, number) for number, paths in enumerate(dataset.paths))
        for image, number in images:
            if name in (None, image):
                return Sample(dataset_opt['name'], image, *dataset[number]['gt'].shape[1:])
            known.add(image)
    raise UserError(f"--image: there is no '{name}' in the benchmarks{did_you_mean(name, known)}.")


# ---- comparing

def compare(entries: Iterable[Entry], benchmarks: Sequence[Config], scale: int, sample: Sample,
            uncertainty: bool = False) -> list[CompareResult]:
    """Tests the entries and bicubic on the benchmarks, and measures what they cost.

    Args:
        entries: Of one scale. They are iterated over once, for a progress bar.
        benchmarks: Options of datasets.
        scale: Theirs.
        sample: The image of which crops are drawn.
        uncertainty: Whether maps are rated.

    Returns:
        The results, with bicubic first.
    """
    def record(result: CompareResult, image: ImageResult) -> None:
        result.scores.setdefault(image.benchmark, {})[image.name] = image.compute_scores(scale)
        if (image.benchmark, image.name) == (sample.benchmark, sample.name):
            result.sample = image

    results = [CompareResult(BICUBIC)]
    for image in evaluate_bicubic(benchmarks, scale):
        record(results[0], image)
    for entry in entries:
        results.append(result := CompareResult(entry.label, entry))
        datasets = [{**one, 'color': 'y'} for one in benchmarks] if entry.channels == 1 else benchmarks
        for image in evaluate(entry.opt, datasets, uncertainty=entry.has_map):
            record(result, image)
            if uncertainty and entry.has_map:
                for log_var, ratings in ((image.log_var, result.maps), (None, result.gradients)):
                    ratings.setdefault(image.benchmark, {})[image.name] = rate_map(
                        image.sr, image.gt, log_var, scale, entry.loss, entry.error_scale)
    _measure_cost(results, scale)
    return results


def _measure_cost(results: Sequence[CompareResult], scale: int) -> None:
    lq = img2tensor(np.atleast_3d(results[0].sample.lq) / 255.).float().unsqueeze(0)
    functions: dict[str, Callable[[Tensor], Tensor]] = {}
    for result in results:
        entry = result.entry
        if entry is None:
            functions[BICUBIC] = lambda lq: F.interpolate(lq, scale_factor=scale, mode='bicubic', antialias=True)
            continue
        network_g = entry.opt['network_g']
        functions[result.label] = entry.run
        result.cost['params'] = cost.parameters(entry.net)
        result.cost['madds'] = cost.multiply_adds(entry.net, network_g, entry.channels, scale)
        size = (min(length, entry.opt['val']['tile'] or length) for length in lq.shape[2:])
        result.cost['memory'] = cost.peak_memory(network_g, (1, entry.channels, *size))
    for result, seconds in zip(results, cost.time_in_turn(functions, lq).values()):
        result.cost['time'] = seconds
