"""Networks side by side on benchmarks: scores, cost, crops, and how good their uncertainty maps are."""
import statistics
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import yaml
from basicsr.data import build_dataset
from basicsr.utils import img2tensor
from basicsr.utils.options import ordered_yaml
from torch.nn import functional as F

from udl_plugin import measure
from udl_plugin.archs.two_step import TwoStep
from udl_plugin.archs.with_variance import WithVariance, build, run_small
from udl_plugin.checkpoints import as_plain_data, read_fitting, write_checkpoint
from udl_plugin.data.pairs import check_pairs
from udl_plugin.errors import InputError, did_you_mean
from udl_plugin.metrics import uncertainty_metrics as metrics
from udl_plugin.model_files import read_model
from udl_plugin.options import check_options
from udl_plugin.pictures import color_bar, encode_png, error_picture, luma, sheet, uncertainty_picture
from udl_plugin.report import Heading, Picture, Table, Text, new_figure, png_of, to_csv
from udl_plugin.sections import plain_section
from udl_plugin.studies.evaluate import evaluate, evaluate_bicubic, for_test, name_of, scores_of, test_options
from udl_plugin.studies.matrix import benchmark_section
from udl_plugin.studies.tables import paired, with_interval

BICUBIC = 'bicubic'
GRADIENT = 'gradient of the SR image'  # what a map must beat
ZOOMED = 240  # height of a crop in the picture


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
        linear, calibration, sparse, bins = uncertainty, np.nan, None, (nothing, nothing)
    else:
        uncertainty, error = metrics.samples(sr, gt, log_var, border)
        linear, calibration = metrics.expected_error(uncertainty, loss), metrics.calibration(uncertainty, error, loss)
        sparse = metrics.step2_weight(metrics.crop(log_var, border))
        bins = metrics.reliability(uncertainty, error, loss)
    sparsity = (np.nan, np.nan) if sparse is None else (metrics.gini(sparse), metrics.hoyer(sparse))
    return MapQuality(
        metrics.spearman(uncertainty, error), metrics.pearson(linear, error), metrics.ause(uncertainty, error),
        calibration, *sparsity, metrics.sparsification(uncertainty, error), metrics.sparsification(error, error), *bins)


# ---- what is compared

def read_entries(inputs, folder):
    """Reads test ymls and checkpoints.

    Args:
        inputs (list[str]): Paths, each with a label and `=` before it where wanted.
        folder (str | Path): For checkpoints of other layouts than BasicSR's.

    Returns:
        tuple[list[Entry], dict, int | None]: The entries; the data sets that the ymls name, name to section; the scale.

    Raises:
        InputError: names the input.
    """
    entries, datasets, scales = [], {}, {}
    for number, text in enumerate(inputs):
        label, _, path = text.partition('=') if '=' in text and not Path(text).exists() else ('', '', text)
        try:
            entry, own_datasets = (_from_yml if Path(path).suffix in ('.yml', '.yaml') else _from_checkpoint)(
                path, label, Path(folder, f'{number}.pth'))
        except InputError as err:
            raise InputError(str(err) if path in str(err) else f"'{path}': {err}") from err
        for name, section in own_datasets.items():
            if datasets.setdefault(name, section) != section:
                raise InputError(f"'{path}': its data set {name} is another than that of a yml before it; name the "
                                 'benchmarks with --sets.')
        scales.setdefault(entry.opt['scale'], path)
        entries.append(entry)
    if len(scales) > 1:
        (one, path), (two, other) = list(scales.items())[:2]
        raise InputError(f"'{path}' is of scale {one} and '{other}' of scale {two}; compare one scale at a time.")
    return _with_own_labels(entries), datasets, next(iter(scales), None)


def _with_own_labels(entries):
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1 or label in (BICUBIC, GRADIENT):
            raise InputError(f"the label '{label}' is taken; give others: LABEL=FILE.")
    return entries


def _from_yml(path, label, _):
    try:
        with open(path, encoding='utf-8') as file:
            opt = as_plain_data(yaml.load(file, Loader=ordered_yaml()[0]))
    except OSError as err:
        raise InputError(f"'{path}': {err.strerror}.") from err
    except (UnicodeDecodeError, yaml.YAMLError) as err:
        raise InputError(f"'{path}' is no yml: {err}.") from err
    if not isinstance(opt, dict) or 'train' in opt:
        raise InputError(f"'{path}' is not the yml of a test, such as options/test_udl.yml; of a training, name the "
                         'checkpoint.')
    for key, kind in (('name', str), ('scale', int), ('network_g', dict), ('path', dict)):
        if not isinstance(opt.get(key), kind):
            raise InputError(f"'{path}': {key}: is missing, or not what BasicSR has there.")
    if not isinstance(opt['path'].get('pretrain_network_g'), str):
        raise InputError(f"'{path}': path: pretrain_network_g: is missing: there is nothing to test.")
    sections = opt.get('datasets') or {}
    if not isinstance(sections, dict) or not all(isinstance(section, dict) and 'name' in section
                                                 for section in sections.values()):
        raise InputError(f"'{path}': datasets: holds sections, each with a name.")
    datasets = {section['name']: section for section in sections.values()}
    opt = {**test_options(opt['name'], opt['network_g'], opt['path'], opt['scale'], []),
           'model_type': opt.get('model_type', 'UDLModel')}
    check_options(opt)
    net = build(opt['network_g'])
    own = opt['path']
    state_dict, _, mismatch = read_fitting(net, own['pretrain_network_g'], own.get('param_key_g', 'params'),
                                           own.get('strict_load_g', True))
    if not mismatch:
        net.load_state_dict(state_dict)
    return _entry(label or opt['name'], opt, net), datasets


def _from_checkpoint(path, label, copy):
    model = read_model(path)
    write_checkpoint(copy, {'params': model.state_dict}, model.network_g)
    file = Path(path).resolve()
    if file.parent.name == 'models' and file.parts[-4:-3] == ('experiments',):  # BasicSR's places
        file = file.parent.parent
    label = label or file.stem
    opt = test_options(label, model.network_g, {'pretrain_network_g': str(copy)}, model.channels_and_scale[1], [])
    return _entry(label, opt, model.build()), {}


def _entry(label, opt, net):
    has_map = opt['model_type'] == 'UDLModel' and isinstance(net, (TwoStep, WithVariance))
    net = net.sr_net if isinstance(net, TwoStep) else net.backbone if isinstance(net, WithVariance) else net
    return Entry(label, opt, net.eval(), plain_section(opt['network_g']), run_small(net)[0][1], has_map)


def find_benchmarks(sets, datasets, scale):
    """Sections of the data sets to test on, checked.

    Args:
        sets (list[str]): Folders that udl-prepare wrote; empty: `datasets`.
        datasets (dict): From `read_entries`.
        scale (int): Of the networks.

    Raises:
        InputError: there are none, or they do not fit the scale.
    """
    found = [benchmark_section(Path(root).resolve().name, root, scale) for root in sets] or list(datasets.values())
    names = [section['name'] for section in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f'--sets: two benchmarks are called {name}; rename a folder.')
    if not found:
        raise InputError('--sets: is missing: folders that udl-prepare wrote, --sets datasets/Set5 datasets/Set14.')
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
        InputError: there is none of that name.
    """
    known = {}
    for section in benchmarks:
        dataset = build_dataset(for_test(section, scale))
        own = {name_of(paths['lq_path']): number for number, paths in enumerate(dataset.paths)}
        for image, number in sorted(own.items()):
            known.setdefault(image, (section['name'], dataset, number))
    if name is not None and name not in known:
        raise InputError(f"--image: there is no '{name}' in the benchmarks{did_you_mean(name, known)}.")
    name = next(iter(known)) if name is None else name
    benchmark, dataset, number = known[name]
    return Shown(benchmark, name, *dataset[number]['gt'].shape[1:])


# ---- comparing

def compare(entries, benchmarks, scale, shown, uncertainty=False, losses=None, track=None):
    """Tests the entries and bicubic on the benchmarks and measures what they cost.

    Args:
        entries (list[Entry]): Of one scale.
        benchmarks (list[dict]): Sections of data sets.
        scale (int): Theirs.
        shown (Shown): The image of which crops are wanted.
        uncertainty (bool): Whether maps are rated.
        losses (dict): Label to the loss that its map was trained with, where it is not ESU.
        track (Callable): Called as `track(entries, number)`, to be iterated over in their place: a progress bar.

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
    for result, entry in track(pairs, len(pairs)) if track else pairs:
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
        multiple = measure.size_multiple(entry.network_g)
        functions[result.label] = _padded(entry, multiple)
        result.cost['params'] = measure.parameters(entry.net)
        result.cost['madds'] = measure.multiply_adds(entry.net, entry.network_g, entry.channels, scale)
        result.cost['memory'] = measure.peak_memory(entry.network_g, (1, entry.channels, *lq.shape[2:]))
    for label, seconds in measure.time_in_turn(functions, lq).items():
        next(result for result in results if result.label == label).cost['time'] = seconds


def _padded(entry, multiple):
    def run(lq):
        lq = F.pad(lq[:, :entry.channels], (0, -lq.shape[3] % multiple, 0, -lq.shape[2] % multiple), mode='replicate')
        return entry.net.to(lq.device)(lq)
    return run


# ---- the report

def table_of(results, sort='given'):
    """Cells of the table of scores and costs."""
    benchmarks = list(results[0].scores)
    lq = results[0].shown.lq
    header = ['', *(f'{benchmark} {what}' for benchmark in benchmarks for what in ('PSNR-Y (dB)', 'SSIM-Y')),
              'parameters', 'multiply-adds (G)', f'ms ({lq.shape[1]} x {lq.shape[0]})', 'peak memory (MiB)']
    rows = [header]
    for result in results if sort == 'given' else sorted(results, key=lambda result: result.key(sort)):
        cost = result.cost
        rows.append([
            result.label,
            *(f'{result.mean(benchmark, number):.{digits}f}' for benchmark in benchmarks
              for number, digits in ((0, 2), (1, 4))),
            *('-' if cost.get(name) is None else format(cost[name] / unit, form)
              for name, unit, form in (('params', 1, ',.0f'), ('madds', 1e9, ',.1f'), ('time', 1e-3, '.1f'),
                                       ('memory', 2**20, ',.0f')))])
    return rows


def scores_csv(results):
    lines = [('network', 'benchmark', 'image', 'psnr', 'ssim')]
    lines += [(result.label, benchmark, image, f'{scores.psnr:.4f}', f'{scores.ssim:.6f}') for result in results
              for benchmark, images in result.scores.items() for image, scores in sorted(images.items())]
    return to_csv(lines)


COLUMNS = {'spearman': 'Spearman', 'pearson': 'Pearson', 'ause': 'AUSE', 'calibration': 'calibration error',
           'gini': 'sparsity (Gini)', 'hoyer': 'sparsity (Hoyer)'}


MAPS = ('Of the maps: each sample is one channel of one pixel; figures are means over the images. Spearman: correlation'
        ' of the map with the absolute error; Pearson: of exp(map). AUSE: area between the sparsification curve and '
        'that of the error itself, lower is better. Calibration error: of the mean absolute error that the map '
        'predicts, in ten bins, lower is better. Sparsity: of the map less its minimum, as step 2 weighs by it. The '
        'last column has the 95 % confidence interval of a paired t-test over the images.')


def map_table_of(results, benchmark):
    """Cells of the table of the maps' quality on one benchmark."""
    rows = [['', *COLUMNS.values(), 'AUSE against the gradient']]
    for result in results:
        if benchmark not in result.maps:
            continue
        for label, images in _rated(result, benchmark):
            means = [statistics.fmean(getattr(image, name) for image in images.values()) for name in COLUMNS]
            rows.append([label, *('-' if np.isnan(mean) else f'{mean:.3f}' for mean in means), '-'])
        ours, theirs = ([side[image].ause for image in result.maps[benchmark]]
                        for side in (result.maps[benchmark], result.gradients[benchmark]))
        rows[-2][-1] = with_interval(*paired(ours, theirs))
    return rows


def _rated(result, benchmark):
    return ((result.label, result.maps[benchmark]), (f'{result.label}: {GRADIENT}', result.gradients[benchmark]))


def maps_csv(results):
    lines = [('network', 'benchmark', 'image', *COLUMNS)]
    for result in results:
        for benchmark in result.maps:
            for label, images in _rated(result, benchmark):
                lines += [(label, benchmark, image, *(f'{getattr(quality, name):.6f}' for name in COLUMNS))
                          for image, quality in sorted(images.items())]
    return to_csv(lines)


def draw_sparsification(results, benchmark):
    """Curves of the maps, of the oracle and of random order: means over the images."""
    figure, plots = new_figure(2)
    plot, calibration = plots
    fractions = np.arange(metrics.STEPS) / metrics.STEPS
    for number, result in enumerate(result for result in results if benchmark in result.maps):
        images, color = result.maps[benchmark].values(), f'C{number}'
        plot.plot(fractions, np.mean([image.curve for image in images], axis=0), color=color, label=result.label)
        gradients = [image.curve for image in result.gradients[benchmark].values()]
        plot.plot(fractions, np.mean(gradients, axis=0), ':', color=color, label=f'{result.label}: gradient')
        plot.plot(fractions, np.mean([image.oracle for image in images], axis=0), '--', color=color, linewidth=0.8,
                  label=f'{result.label}: oracle')
        calibration.plot(np.mean([image.predicted for image in images], axis=0),
                         np.mean([image.observed for image in images], axis=0), 'o-', color=color, label=result.label)
    plot.axhline(1, color='grey', linewidth=0.8, label='random')
    plot.set(xlabel='part of the samples taken away, the least sure first', ylabel='mean error of the rest / of all',
             title=f'Sparsification, {benchmark}')
    plot.legend(fontsize='small')
    ends = [0, max(*calibration.get_xlim(), *calibration.get_ylim())]
    calibration.plot(ends, ends, color='grey', linewidth=0.8)
    calibration.set(xlabel='predicted mean error (8-bit levels)', ylabel='observed', title='Calibration')
    return png_of(figure)


def find_boxes(results, size, count=2):
    """Where the first network with a map is least sure; without one, where bicubic errs most.

    Args:
        results (list[Result]): Bicubic first.
        size (int): Sides, in pixels of the ground truth.
        count (int): How many, not overlapping.

    Returns:
        list[tuple[int]]: x, y, width, height.
    """
    shown = next((result.shown for result in results if result.shown.log_var is not None), None)
    if shown is not None:
        ground = luma(shown.log_var)
    else:
        shown = results[0].shown
        ground = np.abs(np.atleast_3d(shown.sr).astype(float) - np.atleast_3d(shown.gt)).mean(axis=2)
    height, width = ground.shape
    size = min(size, height, width)
    local = cv2.boxFilter(ground.astype(np.float64), -1, (size, size), anchor=(0, 0), borderType=cv2.BORDER_REFLECT)
    local = local[:height - size + 1, :width - size + 1]
    boxes = []
    while len(boxes) < count and np.isfinite(local).any():
        y, x = np.unravel_index(local.argmax(), local.shape)
        boxes.append((int(x), int(y), size, size))
        local[max(0, y - size + 1):y + size, max(0, x - size + 1):x + size] = -np.inf
    return boxes


def draw_crops(results, boxes, border):
    """The ground truth with the boxes, then of each box the ground truth, what became of it, and the maps."""
    gt = _bgr(results[0].shown.gt)
    maps = {result.label: result.shown.log_var for result in results if result.shown.log_var is not None}
    limits = None
    if maps:
        limits = (min(float(luma(values).min()) for values in maps.values()),
                  max(float(luma(values).max()) for values in maps.values()))
        limits = (limits[0], max(limits[1], limits[0] + 0.1))
    overview = gt.copy()
    for number, (x, y, width, height) in enumerate(boxes):
        cv2.rectangle(overview, (x, y), (x + width - 1, y + height - 1), (0, 0, 255), 2)
        cv2.putText(overview, str(number + 1), (x + 4, y + 18), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 255), 2)
    errors = [('ground truth', overview)]
    errors += [(f'{result.label}: error, red: 32 levels', error_picture(_bgr(result.shown.sr), _bgr(result.shown.gt)))
               for result in results]
    drawn = []
    for label, log_var in maps.items():
        drawn += [(f'{label}: map, own limits', uncertainty_picture(log_var)),
                  (f'{label}: map', uncertainty_picture(log_var, limits))]
    if maps:
        drawn.append(('', color_bar(ZOOMED, limits)))
    rows = [[(label, _to_height(tile, ZOOMED)) for label, tile in part]
            for tiles in (errors, drawn) for part in _in_rows(tiles, 7)]
    for number, (x, y, width, height) in enumerate(boxes, 1):
        def cut(picture, x=x, y=y, width=width, height=height):
            return _to_height(picture[y:y + height, x:x + width], ZOOMED)

        row = [(f'{number}: ground truth', cut(gt))]
        for result in results:
            psnr = scores_of(result.shown.sr, result.shown.gt, border).psnr
            row.append((f'{result.label}, {psnr:.2f} dB', cut(_bgr(result.shown.sr))))
        row += [(f'{label}: map', cut(uncertainty_picture(log_var, limits))) for label, log_var in maps.items()]
        if maps:
            row.append(('', color_bar(ZOOMED, limits)))
        rows += _in_rows(row, 7)
    return encode_png(sheet(rows))


def _in_rows(tiles, length):
    return [tiles[start:start + length] for start in range(0, len(tiles), length)]


def _bgr(image):
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image


def _to_height(picture, height):
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    smaller = height < picture.shape[0]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_NEAREST)


def report_of(results, scale, boxes, sort, machine):
    """The parts of the report (see udl_plugin/report.py), and its files: name to content."""
    shown = results[0].shown
    table = Table(table_of(results, sort))
    parts = [Text(f'x{scale}. PSNR-Y and SSIM-Y through BasicSR\'s test code, {scale} pixels of border cut; bicubic is '
                  f'MATLAB\'s. Multiply-adds are for an output of 1280 x 720. Times are medians, measured in turn on '
                  f'{shown.name}; memory is what one run on it takes beyond the network. {machine}.'), table]
    crops = Picture('crops.png', draw_crops(results, boxes, scale), f'{shown.name}: '
                    + '; '.join(f'box {number} at {x},{y}, {width} x {height}'
                                for number, (x, y, width, height) in enumerate(boxes, 1)))
    files = {'scores.csv': scores_csv(results), crops.name: crops.png}
    for benchmark in results[0].scores:
        if not any(benchmark in result.maps for result in results):
            continue
        plot = Picture(f'sparsification_{benchmark}.png', draw_sparsification(results, benchmark),
                       f'Sparsification and calibration on {benchmark}, means over the images')
        parts += [Heading(f'Uncertainty maps, {benchmark}'), Table(map_table_of(results, benchmark)), plot]
        files[plot.name] = plot.png
    if any(result.maps for result in results):
        parts.append(Text(MAPS))
        files['maps.csv'] = maps_csv(results)
    parts += [Heading(f'Crops of {shown.name}'), crops]
    return parts, files
