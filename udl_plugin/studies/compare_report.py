"""The tables, plots and crops of a comparison, and its report."""
from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from udl_plugin.inference.visualize import (
    color_bar,
    contact_sheet,
    encode_png,
    error_picture,
    luma,
    uncertainty_picture,
)
from udl_plugin.metrics import uncertainty_metrics as metrics
from udl_plugin.studies.compare import CompareResult, MapQuality
from udl_plugin.studies.config import METRICS
from udl_plugin.studies.evaluate import list_scores
from udl_plugin.studies.report import Report, encode_figure, markdown_table, new_figure, to_csv
from udl_plugin.studies.significance import compare_pairs

GRADIENT = 'gradient of the SR image'  # a map should be better than this
CROP_HEIGHT = 240  # of a crop in the picture
TILES_PER_ROW = 7
COSTS = {'params': (1, ',.0f'), 'madds': (1e9, ',.1f'), 'time': (1e-3, '.1f'), 'memory': (2**20, ',.0f')}  # unit
RATINGS = {'spearman': 'Spearman', 'pearson': 'Pearson', 'ause': 'AUSE', 'calibration': 'calibration error',
           'gini': 'sparsity (Gini)', 'hoyer': 'sparsity (Hoyer)'}
ABOUT_RATINGS = (
    'Each sample is one channel of one pixel; numbers are means over the images. Spearman: correlation of the map with '
    'the absolute error; Pearson: of exp(map). AUSE: area between the sparsification curve and that of the error, '
    'lower is better. Calibration error: of the mean absolute error that the map predicts, in ten bins, lower is '
    'better. Sparsity: of the map minus its minimum, which is the weight in step 2. The last column has the 95 % '
    'confidence interval of a paired t-test over the images.')
Box = tuple[int, int, int, int]  # x, y, width, height in pixels of the ground truth
Tile = tuple[str, np.ndarray]  # label and picture


def build_table(results: Sequence[CompareResult], sort: str = 'given') -> list[list[str]]:
    """Cells of the table of scores and costs, in the order of the results or sorted by a metric or cost."""
    benchmarks = list(results[0].scores)
    height, width = results[0].sample.lq.shape[:2]
    rows = [['', *(f'{benchmark} {title}' for benchmark in benchmarks for title, _ in METRICS.values()),
             'parameters', 'multiply-adds (G)', f'ms ({width} x {height})', 'peak memory (MiB)']]
    for result in results if sort == 'given' else sorted(results, key=lambda result: result.sort_key(sort)):
        scores = [f'{result.mean(benchmark, metric):.{digits}f}' for benchmark in benchmarks
                  for metric, (_, digits) in METRICS.items()]
        costs = ['-' if (value := result.cost.get(name)) is None else format(value / unit, digits)
                 for name, (unit, digits) in COSTS.items()]
        rows.append([result.label, *scores, *costs])
    return rows


def build_map_table(results: Sequence[CompareResult], benchmark: str) -> list[list[str]]:
    """Cells of the table of the maps' quality on one benchmark."""
    rows = [['', *RATINGS.values(), 'AUSE against the gradient']]
    for result in results:
        if benchmark not in result.maps:
            continue
        for label, images in _get_ratings(result, benchmark).items():
            means = [statistics.fmean(getattr(quality, name) for quality in images.values()) for name in RATINGS]
            rows.append([label, *('-' if np.isnan(mean) else f'{mean:.3f}' for mean in means), '-'])
        ours, theirs = ([side[benchmark][image].ause for image in result.maps[benchmark]]
                        for side in (result.maps, result.gradients))
        rows[-2][-1] = str(compare_pairs(ours, theirs))
    return rows


def _get_ratings(result: CompareResult, benchmark: str) -> dict[str, dict[str, MapQuality]]:
    return {result.label: result.maps[benchmark], f'{result.label}: {GRADIENT}': result.gradients[benchmark]}


def maps_csv(results: Sequence[CompareResult]) -> str:
    """The quality of every map and gradient."""
    lines: list[tuple[str, ...]] = [('network', 'benchmark', 'image', *RATINGS)]
    lines += [(label, benchmark, image, *(f'{getattr(quality, name):.6f}' for name in RATINGS))
              for result in results for benchmark in result.maps
              for label, images in _get_ratings(result, benchmark).items()
              for image, quality in sorted(images.items())]
    return to_csv(lines)


def draw_sparsification(results: Sequence[CompareResult], benchmark: str) -> bytes:
    """Sparsification curves of the maps, their oracles and random order, and reliability diagrams: image means."""
    figure, plots = new_figure(2)
    plot, calibration = plots
    fractions = np.arange(metrics.STEPS) / metrics.STEPS
    for number, result in enumerate(result for result in results if benchmark in result.maps):
        color = f'C{number}'
        curve, oracle, predicted, observed = (
            np.mean([getattr(quality, name) for quality in result.maps[benchmark].values()], axis=0)
            for name in ('curve', 'oracle', 'predicted', 'observed'))
        gradient = np.mean([quality.curve for quality in result.gradients[benchmark].values()], axis=0)
        plot.plot(fractions, curve, color=color, label=result.label)
        plot.plot(fractions, gradient, ':', color=color)
        plot.plot(fractions, oracle, '--', color=color, linewidth=0.8)
        calibration.plot(predicted, observed, 'o-', color=color, label=result.label)
    plot.plot([], [], ':', color='grey', label=GRADIENT)
    plot.plot([], [], '--', color='grey', linewidth=0.8, label='oracle: the error itself')
    plot.axhline(1, color='grey', linewidth=0.8, label='random')
    plot.set(xlabel='fraction of samples removed, most uncertain first', ylabel='mean error of the rest / of all',
             title=f'Sparsification, {benchmark}')
    plot.legend(fontsize='small')
    ends = [0, max(*calibration.get_xlim(), *calibration.get_ylim())]
    calibration.plot(ends, ends, color='grey', linewidth=0.8)
    calibration.set(xlabel='predicted mean error (8-bit levels)', ylabel='observed', title='Calibration')
    return encode_figure(figure)


def find_boxes(results: Sequence[CompareResult], size: int) -> list[Box]:
    """Two boxes where the first map is highest; without a map, where bicubic has the largest error.

    Args:
        results: Bicubic first.
        size: Width and height of a box. Boxes do not overlap; if there is no room for a second one, there is one.
    """
    sample = next((result.sample for result in results if result.sample.log_var is not None), results[0].sample)
    if sample.log_var is not None:
        score = luma(sample.log_var)
    else:
        score = np.abs(np.atleast_3d(sample.sr).astype(float) - np.atleast_3d(sample.gt)).mean(axis=2)
    height, width = score.shape
    size = min(size, height, width)
    local = cv2.boxFilter(score.astype(np.float64), -1, (size, size), anchor=(0, 0), borderType=cv2.BORDER_REFLECT)
    local = local[:height - size + 1, :width - size + 1]
    boxes: list[Box] = []
    while len(boxes) < 2 and np.isfinite(local).any():
        y, x = np.unravel_index(local.argmax(), local.shape)
        boxes.append((int(x), int(y), size, size))
        local[max(0, y - size + 1):y + size, max(0, x - size + 1):x + size] = -np.inf
    return boxes


def draw_crops(results: Sequence[CompareResult], boxes: Sequence[Box]) -> bytes:
    """The ground truth with the boxes, errors and maps; then the crops of each box, from all results."""
    sample = results[0].sample
    gt = _to_bgr(sample.gt)
    images = {result.label: _to_bgr(result.sample.sr) for result in results}
    log_vars = {result.label: result.sample.log_var for result in results if result.sample.log_var is not None}
    limits = _find_limits(log_vars.values())
    maps = {label: uncertainty_picture(log_var, limits) for label, log_var in log_vars.items()}
    overview = gt.copy()
    for number, (x, y, width, height) in enumerate(boxes, 1):
        cv2.rectangle(overview, (x, y), (x + width - 1, y + height - 1), (0, 0, 255), 2)
        cv2.putText(overview, str(number), (x + 4, y + 18), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 255), 2)
    errors = [('ground truth', overview)]
    for result in results:
        error = error_picture(_to_bgr(result.sample.sr), _to_bgr(result.sample.gt))
        errors.append((f'{result.label}: error, red: 32 levels', error))
    pictures = []
    for label, log_var in log_vars.items():
        pictures += [(f'{label}: map, own limits', uncertainty_picture(log_var)), (f'{label}: map', maps[label])]
    rows = [*_build_rows(errors), *_build_rows(pictures, limits)]
    psnr = {result.label: result.scores[sample.benchmark][sample.name]['psnr'] for result in results}
    for number, (x, y, width, height) in enumerate(boxes, 1):
        tiles = [(f'{number}: ground truth', gt),
                 *((f'{label}, {psnr[label]:.2f} dB', image) for label, image in images.items()),
                 *((f'{label}: map', picture) for label, picture in maps.items())]
        rows += _build_rows([(label, tile[y:y + height, x:x + width]) for label, tile in tiles], limits)
    return encode_png(contact_sheet(rows))


def _find_limits(maps: Iterable[np.ndarray]) -> tuple[float, float] | None:
    """The lowest and highest value of all maps, for one color scale."""
    values = [luma(log_var) for log_var in maps]
    if not values:
        return None
    low, high = min(float(one.min()) for one in values), max(float(one.max()) for one in values)
    return low, max(high, low + 0.1)


def _build_rows(tiles: Sequence[Tile], limits: tuple[float, float] | None = None) -> list[list[Tile]]:
    """Brings tiles to one height and splits them into rows. With `limits`, the color scale is beside the last tile."""
    resized = [(label, _resize(tile)) for label, tile in tiles]
    if limits is not None:
        label, tile = resized[-1]
        gap = np.full((len(tile), 6, 3), 255, np.uint8)
        resized[-1] = label, np.concatenate([tile, gap, color_bar(len(tile), limits)], axis=1)
    return [resized[start:start + TILES_PER_ROW] for start in range(0, len(resized), TILES_PER_ROW)]


def _to_bgr(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image


def _resize(picture: np.ndarray) -> np.ndarray:
    width = max(1, round(picture.shape[1] * CROP_HEIGHT / picture.shape[0]))
    interpolation = cv2.INTER_AREA if picture.shape[0] > CROP_HEIGHT else cv2.INTER_NEAREST
    return cv2.resize(picture, (width, CROP_HEIGHT), interpolation=interpolation)


def build_report(results: Sequence[CompareResult], scale: int, boxes: Sequence[Box], sort: str,
                 machine: str) -> Report:
    """Tables, plots and crops. The Markdown of the tables is in the file `table.md`."""
    report, sample = Report(f'Networks at x{scale}'), results[0].sample
    report.add_text(
        f"x{scale}. PSNR-Y and SSIM-Y by BasicSR's test code, with {scale} pixels of border cropped. Bicubic is "
        "MATLAB's; its time is PyTorch's. Multiply-adds are for an output of 1280 x 720. Times are medians, "
        f'measured in turn on {sample.name}; memory is what one run on it takes in addition to the network. {machine}.')
    table = build_table(results, sort)
    report.add_table(table)
    texts = [markdown_table(table)]
    for benchmark in [name for name in results[0].scores if any(name in result.maps for result in results)]:
        table = build_map_table(results, benchmark)
        texts.append(f'Maps, {benchmark}:\n\n{markdown_table(table)}')
        report.add_heading(f'Uncertainty maps, {benchmark}')
        report.add_table(table)
        report.add_picture(f'sparsification_{benchmark}.png', draw_sparsification(results, benchmark),
                           f'Sparsification and calibration on {benchmark}, means over the images')
    if len(texts) > 1:
        report.add_text(ABOUT_RATINGS)
        report.files['maps.csv'] = maps_csv(results)
    report.add_heading(f'Crops of {sample.name}')
    report.add_picture('crops.png', draw_crops(results, boxes), f'{sample.name}: ' + '; '.join(
        f'box {number} at {x},{y}, {width} x {height}' for number, (x, y, width, height) in enumerate(boxes, 1)))
    scores = [('network', 'benchmark', 'image', *METRICS),
              *((result.label, *line) for result in results for line in list_scores(result.scores))]
    report.files.update({'scores.csv': to_csv(scores), 'table.md': '\n\n'.join(texts) + '\n'})
    return report
