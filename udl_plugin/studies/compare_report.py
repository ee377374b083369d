"""The tables, plots and crops of a comparison, and its report."""
from __future__ import annotations

import statistics
from collections.abc import Sequence

import cv2
import numpy as np
from basicsr.metrics import calculate_metric
from PIL import Image, ImageDraw

from udl_plugin.inference.comparison_page import Box, PageImage, build_page, describe_owners
from udl_plugin.inference.html_table import SORT_SCRIPT, HtmlTable
from udl_plugin.inference.provenance import provenance_to_html
from udl_plugin.inference.visualize import (
    Limits,
    absolute_error,
    add_color_bar,
    contact_sheet,
    encode_png,
    get_font,
    heat_map,
    luma,
    round_limit,
    swap_red_blue,
)
from udl_plugin.metrics import uncertainty_metrics as metrics
from udl_plugin.studies.compare import CompareResult, MapQuality
from udl_plugin.studies.config import METRICS, build_metrics
from udl_plugin.studies.evaluate import list_scores
from udl_plugin.studies.report import Report, encode_figure, markdown_table, new_figure, to_csv
from udl_plugin.studies.significance import compare_pairs

GRADIENT = 'gradient of the SR image'  # a map should be better than this
MIN_HEIGHT = 240  # of a crop in the picture, which is enlarged by a whole factor
OVERVIEW_HEIGHT = 300  # of the whole image in it, which is shrunk
TILES_PER_ROW = 6
BOX_COLOR = (0, 0, 200)  # BGR
COSTS = {'params': (1, ',.0f'), 'madds': (1e9, ',.1f'), 'time': (1e-3, '.1f'), 'memory': (2**20, ',.0f')}  # unit
RATINGS = {'spearman': 'Spearman', 'pearson': 'Pearson', 'ause': 'AUSE', 'calibration': 'calibration error',
           'gini': 'sparsity (Gini)', 'hoyer': 'sparsity (Hoyer)'}
BETTER = {'spearman': 'higher', 'pearson': 'higher', 'ause': 'lower', 'calibration': 'lower'}
ABOUT_RATINGS = (
    'Each sample is one channel of one pixel; numbers are means over the images. Spearman: correlation of the map with '
    'the absolute error; Pearson: of exp(map). AUSE: area between the sparsification curve and that of the error, '
    'lower is better. Calibration error: of the mean absolute error that the map predicts, in ten bins, lower is '
    'better. Sparsity: of the map minus its minimum, which is the weight in step 2. The last column has the 95 % '
    'confidence interval of a paired t-test over the images.')
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
    score = luma(sample.log_var) if sample.log_var is not None else absolute_error(sample.sr, sample.gt)
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
    """The ground truth with the boxes, and the errors; then the crops of each box. All errors have one scale.

    Crops are enlarged by a whole factor, without interpolation. The dB above a crop is its PSNR-Y.
    """
    truth = results[0].sample.gt
    images = {result.label: result.sample for result in results}
    errors = _list_errors(results)
    limits = 0, round_limit(*errors.values())
    rows = _build_rows([('ground truth', _draw_boxes(truth, boxes)),
                        *((label, heat_map(_shrink(error), limits)) for label, error in errors.items())], limits)
    for number, (x, y, width, height) in enumerate(boxes, 1):
        box = slice(y, y + height), slice(x, x + width)
        tiles = [(f'{number}: ground truth', _enlarge(_to_bgr(truth[box])))]
        for label, sample in images.items():
            psnr = calculate_metric({'img': sample.sr[box], 'img2': sample.gt[box]}, build_metrics(0)['psnr'])
            tiles.append((f'{number}: {label}, {psnr:.2f} dB in this crop', _enlarge(_to_bgr(sample.sr[box]))))
        rows += _build_rows(tiles)
        rows += _build_rows([(f'{number}: {label}', heat_map(_enlarge(error[box]), limits))
                             for label, error in errors.items()], limits)
    return encode_png(contact_sheet(rows))


def _list_errors(results: Sequence[CompareResult]) -> dict[str, np.ndarray]:
    """Label to error of the sample, `(H, W)` in 8-bit levels: the expected and the true one of each result."""
    errors = {}
    for result in results:
        expected = result.expected_error()
        if expected is not None:
            errors[f'expected error of {result.label}'] = expected
        errors[f'true error of {result.label}'] = absolute_error(result.sample.sr, result.sample.gt)
    return errors


def _draw_boxes(image: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
    """The image as high as its row, with numbered boxes."""
    resized = _shrink(_to_bgr(image))
    factor, picture = len(resized) / len(image), Image.fromarray(resized)
    draw, font = ImageDraw.Draw(picture), get_font(20)
    for number, (x, y, width, height) in enumerate(boxes, 1):
        left, top, right, bottom = (round(factor * value) for value in (x, y, x + width, y + height))
        draw.rectangle((left, top, right - 1, bottom - 1), outline=BOX_COLOR, width=2)
        draw.rectangle((left, top, left + 12 * len(str(number)) + 10, top + 25), BOX_COLOR)
        draw.text((left + 5, top + 1), str(number), 'white', font)
    return np.asarray(picture)


def _build_rows(tiles: Sequence[Tile], limits: Limits | None = None) -> list[list[Tile]]:
    """Splits tiles of one height into rows. With `limits`, the color bar of errors is beside the last tile."""
    if limits is not None:
        label, tile = tiles[-1]
        tiles = [*tiles[:-1], (label, add_color_bar(tile, limits, 'absolute error (8-bit levels)'))]
    return [list(tiles[start:start + TILES_PER_ROW]) for start in range(0, len(tiles), TILES_PER_ROW)]


def _to_bgr(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image


def _shrink(picture: np.ndarray) -> np.ndarray:
    """Shrinks to `OVERVIEW_HEIGHT`; enlarges a smaller picture as `_enlarge` does."""
    height, width = picture.shape[:2]
    if height <= OVERVIEW_HEIGHT:
        return _enlarge(picture)
    size = max(1, round(width * OVERVIEW_HEIGHT / height)), OVERVIEW_HEIGHT
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _enlarge(picture: np.ndarray) -> np.ndarray:
    """Repeats pixels, by the smallest whole factor for `MIN_HEIGHT` or more."""
    factor = max(1, -(-MIN_HEIGHT // len(picture)))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def build_compare_page(results: Sequence[CompareResult], scale: int, boxes: Sequence[Box], sort: str,
                       provenance: Sequence[tuple[str, str]]) -> str:
    """The page that compares the images of the sample; see `comparison_page.build_page`.

    Raises:
        UserError: the page would be too large.
    """
    sample = results[0].sample
    images = [PageImage(result.label, swap_red_blue(result.sample.sr), result.expected_error(),
                        result.entry.owner if result.entry else '', swap_red_blue(result.sample.gt))
              for result in results]
    tables = build_html_tables(results, sort)
    return build_page(f'{sample.name} ({sample.benchmark}) at x{scale}', images, provenance,
                      [*tables, *(build_html_map_table(results, name) for name in _list_rated(results)),
                       *build_image_tables(results)], ["Bicubic is MATLAB's."], boxes)


def build_html_tables(results: Sequence[CompareResult], sort: str = 'given') -> list[HtmlTable]:
    """The scores on each benchmark, and the costs: the columns of `build_table`."""
    head, *rows = build_table(results, sort)
    metrics, tables = len(METRICS), []
    for number, benchmark in enumerate(results[0].scores):
        columns = slice(1 + number * metrics, 1 + (number + 1) * metrics)
        names = [title for title, _ in METRICS.values()]
        tables.append(HtmlTable(benchmark, [['network', *names], *([row[0], *row[columns]] for row in rows)],
                                dict.fromkeys(range(1, 1 + metrics), 'higher')))
    costs = [['network', *head[-len(COSTS):]], *([row[0], *row[-len(COSTS):]] for row in rows)]
    return [*tables, HtmlTable('Cost', costs, dict.fromkeys(range(1, 1 + len(COSTS)), 'lower'))]


def build_html_map_table(results: Sequence[CompareResult], benchmark: str) -> HtmlTable:
    """As `build_map_table`."""
    (_, *head), *rows = build_map_table(results, benchmark)
    better = {number: BETTER[name] for number, name in enumerate(RATINGS, 1) if name in BETTER}
    return HtmlTable(f'Uncertainty maps, {benchmark}', [['network', *head], *rows], better)


def build_image_tables(results: Sequence[CompareResult]) -> list[HtmlTable]:
    """The scores of every image, a table on demand for each benchmark."""
    head = ['image', *(f'{result.label} {title}' for result in results for title, _ in METRICS.values())]
    tables = []
    for benchmark, images in results[0].scores.items():
        rows = [[image, *(f'{result.scores[benchmark][image][metric]:.{digits}f}' for result in results
                          for metric, (_, digits) in METRICS.items())] for image in sorted(images)]
        tables.append(HtmlTable(f'{benchmark}, image by image', [head, *rows], is_folded=True))
    return tables


def _list_rated(results: Sequence[CompareResult]) -> list[str]:
    """The benchmarks on which maps were rated."""
    return [name for name in results[0].scores if any(name in result.maps for result in results)]


def build_report(results: Sequence[CompareResult], scale: int, boxes: Sequence[Box], sort: str, machine: str,
                 provenance: Sequence[tuple[str, str]] = ()) -> Report:
    """Tables, plots and crops. The Markdown of the tables is in the file `table.md`.

    Args:
        provenance: See `list_provenance`.
    """
    report, sample = Report(f'Networks at x{scale}'), results[0].sample
    report.add_text(
        f"x{scale}. PSNR-Y and SSIM-Y by BasicSR's test code, with {scale} pixels of border cropped. Bicubic is "
        "MATLAB's; its time is PyTorch's. Multiply-adds are for an output of 1280 x 720. Times are medians, "
        f'measured in turn on {sample.name}; memory is what one run on it takes in addition to the network. {machine}.')
    for one in build_html_tables(results, sort):
        report.add_html(one.to_html())
    report.add_text('The best of each column is bold, the second best underlined.')
    texts = [markdown_table(build_table(results, sort))]
    for benchmark in _list_rated(results):
        texts.append(f'Maps, {benchmark}:\n\n{markdown_table(build_map_table(results, benchmark))}')
        report.add_html(build_html_map_table(results, benchmark).to_html())
        report.add_picture(f'sparsification_{benchmark}.png', draw_sparsification(results, benchmark),
                           f'Sparsification and calibration on {benchmark}, means over the images')
    if len(texts) > 1:
        report.add_text(ABOUT_RATINGS)
        report.files['maps.csv'] = maps_csv(results)
    report.add_heading(f'Crops of {sample.name}')
    owners = describe_owners({result.label: result.entry.owner for result in results
                              if result.entry and result.sample.log_var is not None})
    report.add_picture('crops.png', draw_crops(results, boxes), f'{sample.name}: ' + '; '.join(
        f'box {number} at {x},{y}, {width} x {height}' for number, (x, y, width, height) in enumerate(boxes, 1))
        + f'. All errors have one scale. {owners}')
    report.add_heading('Scores of every image')
    for one in build_image_tables(results):
        report.add_html(one.to_html())
    report.add_html(provenance_to_html(provenance))
    report.add_html(f'<script>{SORT_SCRIPT}</script>')
    scores = [('network', 'benchmark', 'image', *METRICS),
              *((result.label, *line) for result in results for line in list_scores(result.scores))]
    report.files.update({'scores.csv': to_csv(scores), 'table.md': '\n\n'.join(texts) + '\n'})
    return report
