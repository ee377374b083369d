"""Plots of a study: differences from the baseline with their intervals, and training curves."""
from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from udl_plugin.studies.config import Study
from udl_plugin.studies.report import COLORS, new_grid
from udl_plugin.studies.tables import Finished, Row, retraining_noise

WIDTH = 7.6  # inches; 730 pixels on a page
BLUE, RED, GREY, BAND = COLORS[0], COLORS[1], '#595959', '#dddddd'
NOISE = 'retraining noise'
NOISE_WIDTH = 2  # of the band, in standard deviations to each side
TITLE: dict[str, Any] = {'loc': 'left', 'fontsize': 'medium', 'fontweight': 'bold'}
LINES = ('-', '--', ':')  # of more variants than colors
SMALL, FAR = 0.05, 3  # dB, and how many times farther than the others a difference is to be far
WIDER = 1.5  # times a close view, and all differences have a view of their own
WIDEST = 0.5  # dB to each side of a close view: 0.03 dB have to be seen
Limits = tuple[float, float]
Bar = tuple[float, float, float]  # mean, low and high end of its interval
Curves = tuple[Sequence[int], np.ndarray]  # iterations, and values `(seeds, iterations)`


def find_views(bars: Sequence[Bar], noise: Sequence[float] = ()) -> tuple[Limits, Limits | None]:
    """Limits of an axis that shows small differences, and of a second one for all if the first leaves out too much.

    Args:
        bars: Of each difference, in dB.
        noise: Half widths of bands around zero, in dB.
    """
    reach = FAR * SMALL
    for size in sorted(abs(mean) for mean, *_ in bars):
        if size <= reach:
            reach = min(WIDEST, max(reach, FAR * size))
    close = [end for mean, *ends in bars if abs(mean) <= reach for end in np.clip(ends, -reach, reach)]
    widths = [end for width in noise for end in (-width, width)]
    near, full = _pad([*close, *np.clip(widths, -reach, reach)]), _pad([*widths, *(end for bar in bars for end in bar)])
    return (near, full) if close and full[1] - full[0] > WIDER * (near[1] - near[0]) else (full, None)


def _pad(values: Sequence[float]) -> Limits:
    low, high = float(min(0, *values, 0)), float(max(0, *values, 0))
    margin = max(0.08 * (high - low), 0.1 * SMALL)
    return low - margin, high + margin


# ---- differences

def draw_differences(study: Study, rows: Sequence[Row]) -> Figure | None:
    """A dot with its interval for each difference, in plots one below the other; None without any difference.

    Where some differences are far from the others, a second column of plots shows all, and the first those near the
    baseline. Blue: the interval is above zero; red: below; hollow: it has zero inside, or there is none.
    """
    rows = [row for row in rows if row.difference]
    if not rows:
        return None
    panels, labels = _arrange(rows)
    near, full = find_views([_get_bar(row) for row in rows],
                            [NOISE_WIDTH * row.noise for row in rows if row.noise is not None])
    views = [near] if full is None else [near, full]
    height = max(0.28, *(0.16 * (1 + label.count('\n')) for of_panel in labels.values() for label in of_panel))
    heights = [0.42 + height * len(group) for group in panels.values()]
    figure, plots = new_grid(len(panels), len(views), (WIDTH, 0.7 + sum(heights)), sharex='col', sharey='row',
                             height_ratios=heights, width_ratios=[3, 1][:len(views)])
    for (title, group), line in zip(panels.items(), plots):
        for plot, limits in zip(line, views):
            _draw_dots(plot, group, limits)
        line[0].set_yticks(range(len(group)), labels[title])
        line[0].set_ylim(len(group) - 0.5, -0.5)
        line[0].set_title(title, **TITLE)
    plots[-1][0].set_xlabel(f'PSNR-Y minus that of {study.baseline} (dB)')
    if full is not None:
        plots[-1][1].set_xlabel('full range (dB)')
    return figure


def _arrange(rows: Sequence[Row]) -> tuple[dict[str, list[Row]], dict[str, list[str]]]:
    """The rows of each plot, by its title, and their labels.

    A plot is of one benchmark, network and scale, or, of a single variant, of one benchmark.
    """
    is_one_group = len({(row.network, row.scale) for row in rows}) == 1
    is_one_variant = len({row.variant for row in rows}) == 1
    panels: dict[str, list[Row]] = {}
    labels: dict[str, list[str]] = {}
    for row in rows:
        group = f'{row.network} x{row.scale}'
        title = row.benchmark if is_one_group or is_one_variant else f'{group}, {row.benchmark}'
        label = f'{group}: {row.variant}' if is_one_variant and not is_one_group else row.variant
        panels.setdefault(title, []).append(row)
        labels.setdefault(title, []).append(textwrap.fill(label, 28))
    return panels, labels


def _get_bar(row: Row) -> Bar:
    """Of a row with a difference; without an interval, its ends are the mean."""
    assert row.difference is not None
    mean, interval = row.difference
    return (mean, *(interval or (mean, mean)))


def _draw_dots(plot: Axes, rows: Sequence[Row], limits: Limits) -> None:
    noise = [np.nan if row.noise is None else NOISE_WIDTH * row.noise for row in rows]
    if np.isfinite(noise).any():
        edges, widths = np.repeat(np.arange(len(rows) + 1) - 0.5, 2)[1:-1], np.repeat(noise, 2)
        plot.fill_betweenx(edges, -widths, widths, color=BAND, linewidth=0, label=NOISE)
    plot.axvline(0, color='black', linewidth=1)
    for at, row in enumerate(rows):
        mean, low, high = _get_bar(row)
        color = GREY if low == high else BLUE if low > 0 else RED if high < 0 else GREY
        plot.errorbar(mean, at, xerr=[[mean - low], [high - mean]], fmt='o', color=color, markersize=6, capsize=3,
                      markerfacecolor='white' if color == GREY else color)
        outside = '<' if mean < limits[0] else '>' if mean > limits[1] else ''
        if outside:  # an arrow at the edge, with the value
            edge, align = (limits[0], 'left') if outside == '<' else (limits[1], 'right')
            plot.plot(edge, at, outside, color=color, markersize=7, clip_on=False)
            plot.annotate(f'{mean:+.2f}'.replace('-', '\N{MINUS SIGN}'), (edge, at), (8 if outside == '<' else -8, 0),
                          textcoords='offset points', ha=align, va='center', color=GREY, fontsize='small',
                          bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 1})
    plot.set_xlim(limits)
    plot.grid(axis='x', alpha=0.3)
    plot.set_axisbelow(True)
    plot.tick_params(axis='y', length=0, pad=10)
    plot.spines[['top', 'right', 'left']].set_visible(False)


# ---- curves

def draw_curves(study: Study, finished: Finished) -> Figure | None:
    """PSNR in training minus that of the baseline at the same iteration: means and ranges of the seeds.

    One plot below the other for each network and scale. Where some differences are far from those at the end, a second
    plot, above, shows all. Vertical lines mark where steps start. None if there is nothing to compare.
    """
    groups = {f'{network}, x{scale}': found
              for network, scale in itertools.product(study.config['networks'], study.config['scales'])
              if (found := _find_curves(study, finished, network, scale))}
    if not groups:
        return None
    views = {title: find_views_of_curves([curves for name, curves in found.items() if name != study.baseline])
             for title, found in groups.items()}
    heights = [height for near, full in views.values() for height in ([3.2] if full is None else [1.6, 3.2])]
    figure, plots = new_grid(len(heights), 1, (WIDTH, 1.2 + sum(heights)), height_ratios=heights)
    left = iter(plots[:, 0])
    for title, found in groups.items():
        near, full = views[title]
        for number, limits in enumerate([near] if full is None else [full, near]):
            plot = next(left)
            _draw_curves(plot, study, found, limits)
            if number == 0:
                plot.set_title(title, pad=6 if full else 18, **TITLE)
            plot.set_ylabel('full range (dB)' if full is not None and number == 0 else
                            f'PSNR-Y minus that of {study.baseline} (dB)')
        plot.set_xlabel('iterations')
        for start, name in _find_steps(study):
            plot.annotate(f'{name} →', (start, 1), (0, 2), xycoords=('data', 'axes fraction'),
                          textcoords='offset points', ha='left', va='bottom', color=GREY, fontsize='small')
    handles = {line.get_label(): line for plot in plots[:, 0] for line in plot.get_lines()
               if line.get_label() in study.variants}
    figure.legend(list(handles.values()), list(handles), loc='outside lower center', ncols=3, frameon=False)
    return figure


def find_views_of_curves(differences: Sequence[Curves]) -> tuple[Limits, Limits | None]:
    """As `find_views`: what is far is far from the differences in the last third."""
    ends = [values[:, 2 * len(points) // 3:] for points, values in differences]
    near, _ = find_views([(float(end[:, -1].mean()), float(end.min()), float(end.max())) for end in ends])
    full = _pad([float(end) for _, values in differences for end in (values.min(), values.max())])
    return (near, full) if full[1] - full[0] > WIDER * (near[1] - near[0]) else (full, None)


def _find_curves(study: Study, finished: Finished, network: str, scale: int) -> dict[str, Curves]:
    """Variant to its differences from the baseline; the baseline, to its values minus their mean."""
    def join(variant: str) -> dict[int, dict[int, float]]:
        return {seed: curve for seed in study.config['seeds']
                if (curve := _join_curves(study, finished, variant, network, scale, seed))}

    found: dict[str, Curves] = {}
    reference = join(study.baseline)
    for variant in study.variants:
        curves = {seed: curve for seed, curve in join(variant).items() if seed in reference}
        points = sorted(set.intersection(*(
            {*curve} & {*reference[seed]} for seed, curve in curves.items()))) if curves else []
        if points:
            values, theirs = (np.array([[of[seed][point] for point in points] for seed in curves])
                              for of in (curves, reference))
            found[variant] = points, values - (theirs.mean(0) if variant == study.baseline else theirs)
    return found if len(found) > 1 else {}


def _join_curves(study: Study, finished: Finished, variant: str, network: str, scale: int,
                 seed: int) -> dict[int, float]:
    """Iteration, counted from the first step, to PSNR; empty if a step is not finished."""
    curve, start = {}, 0
    for step in range(1, len(study.variants[variant]) + 1):
        name = study.get_run_name(variant, network, scale, seed, step)
        if name not in finished:
            return {}
        total = study.config['steps'][step - 1]['total_iter']
        curve.update({start + int(at): value for at, value in finished[name]['curve'].items() if int(at) <= total})
        start += total
    return curve


def _draw_curves(plot: Axes, study: Study, found: Mapping[str, Curves], limits: Limits) -> None:
    points, values = found[study.baseline]
    if len(values) > 1:
        noise = NOISE_WIDTH * np.array([retraining_noise(list(column)) for column in values.T])
        plot.fill_between(points, -noise, noise, color=BAND, linewidth=0, label=NOISE)
    plot.axhline(0, color='black', linewidth=1)
    for start, name in _find_steps(study):
        plot.axvline(start, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label=f'start of {name}')
    variants = [variant for variant in study.variants if variant != study.baseline]
    for number, variant in enumerate(variants):
        if variant in found:
            points, values = found[variant]
            color, dashes = COLORS[number % len(COLORS)], LINES[number // len(COLORS) % len(LINES)]
            plot.plot(points, values.mean(0), dashes, color=color, label=variant)
            plot.fill_between(points, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
    plot.set_ylim(limits)
    plot.xaxis.set_major_formatter('{x:,.0f}')
    plot.grid(alpha=0.3)
    plot.spines[['top', 'right']].set_visible(False)


def _find_steps(study: Study) -> Iterator[tuple[int, str]]:
    """Iteration and name of where each step but the first starts."""
    for number in range(1, len(study.variants[study.baseline])):
        yield study.count_iterations(number), f'step {number + 1}'
