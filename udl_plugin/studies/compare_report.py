"""The tables, plots and crops of a comparison, and its report."""
import statistics

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
from udl_plugin.studies.evaluate import scores_of
from udl_plugin.studies.report import Heading, Picture, Table, Text, new_figure, png_of, to_csv
from udl_plugin.studies.significance import paired, with_interval

GRADIENT = 'gradient of the SR image'  # what a map must beat
ZOOMED = 240  # height of a crop in the picture
IN_A_ROW = 7


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
        plot.plot(fractions, np.mean(gradients, axis=0), ':', color=color)
        plot.plot(fractions, np.mean([image.oracle for image in images], axis=0), '--', color=color, linewidth=0.8)
        calibration.plot(np.mean([image.predicted for image in images], axis=0),
                         np.mean([image.observed for image in images], axis=0), 'o-', color=color, label=result.label)
    plot.plot([], [], ':', color='grey', label='gradient of the SR image')
    plot.plot([], [], '--', color='grey', linewidth=0.8, label='oracle: the error itself')
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
    rows = [*_in_rows([(label, _to_height(tile)) for label, tile in errors]),
            *_in_rows(_with_bar([(label, _to_height(tile)) for label, tile in drawn], limits))]
    for number, (x, y, width, height) in enumerate(boxes, 1):
        def cut(picture, x=x, y=y, width=width, height=height):
            return _to_height(picture[y:y + height, x:x + width])

        row = [(f'{number}: ground truth', cut(gt))]
        for result in results:
            psnr = scores_of(result.shown.sr, result.shown.gt, border).psnr
            row.append((f'{result.label}, {psnr:.2f} dB', cut(_bgr(result.shown.sr))))
        own = [(f'{label}: map', cut(uncertainty_picture(log_var, limits))) for label, log_var in maps.items()]
        rows += _in_rows(row + _with_bar(own, limits))
    return encode_png(contact_sheet(rows))


def _with_bar(tiles, limits):
    """The last tile gets the scale of the maps beside it."""
    if not tiles:
        return tiles
    label, tile = tiles[-1]
    gap = np.full((len(tile), 6, 3), 255, np.uint8)
    return [*tiles[:-1], (label, np.concatenate([tile, gap, color_bar(len(tile), limits)], axis=1))]


def _in_rows(tiles):
    return [tiles[start:start + IN_A_ROW] for start in range(0, len(tiles), IN_A_ROW)]


def _bgr(image):
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image


def _to_height(picture, height=ZOOMED):
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    smaller = height < picture.shape[0]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_NEAREST)


def report_of(results, scale, boxes, sort, machine):
    """The parts of the report (see udl_plugin/studies/report.py), and its files: name to content."""
    shown = results[0].shown
    table = Table(table_of(results, sort))
    parts = [Text(f'x{scale}. PSNR-Y and SSIM-Y through BasicSR\'s test code, {scale} pixels of border cut; bicubic is '
                  f'MATLAB\'s, its time that of torch\'s. Multiply-adds are for an output of 1280 x 720. Times are '
                  f'medians, measured in turn on {shown.name}; memory is what one run on it takes beyond the network. '
                  f'{machine}.'), table]
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
