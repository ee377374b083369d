"""Results of a study: means over seeds, differences from the baseline with their intervals, tables and plots."""
from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from udl_plugin.studies.config import MAP_METRICS, METRICS, Study
from udl_plugin.studies.evaluate import list_scores, mean_score
from udl_plugin.studies.report import Report, encode_figure, markdown_table, new_figure, to_csv
from udl_plugin.studies.significance import Difference, compare_pairs, format_mean

Finished = Mapping[str, Mapping[str, Any]]  # name of a run to what the worker wrote
POOLED = 'all images'  # in place of a benchmark: those of all benchmarks, each with the same weight


@dataclass(frozen=True)
class Row:
    """A variant on a benchmark.

    Attributes:
        iterations: Of all its steps.
        seeds: Those that are finished.
        scores: Metric to its means over the images, one for each seed.
        difference: Of the PSNR from that of the baseline after equally many iterations. Seeds are paired; with one
            seed, images. None for the baseline itself, and while that is not finished for the same seeds.
    """

    network: str
    scale: int
    variant: str
    iterations: int
    benchmark: str
    seeds: Sequence[int]
    scores: Mapping[str, Sequence[float]]
    difference: Difference | None


def read_scores(study: Study) -> dict[str, dict[str, Any]]:
    """What the worker wrote for each finished run, by name."""
    paths = {run.name: study.folder / 'scores' / f'{run.name}.json' for run in study.runs}
    return {name: json.loads(path.read_text(encoding='utf-8')) for name, path in paths.items() if path.exists()}


def build_rows(study: Study, finished: Finished) -> list[Row]:
    """A row for each network, scale, variant and benchmark for which at least one seed is finished.

    Of several benchmarks, `POOLED` is one more.
    """
    benchmarks = list(study.config['benchmarks'])
    return [row for network, scale, variant, benchmark in itertools.product(
                study.config['networks'], study.config['scales'], study.variants,
                benchmarks + [POOLED] * (len(benchmarks) > 1))
            if (row := _build_row(study, finished, network, scale, variant, benchmark)).seeds]


def _build_row(study: Study, finished: Finished, network: str, scale: int, variant: str, benchmark: str) -> Row:
    steps = len(study.variants[variant])
    images, reference = ({seed: _get_images(finished[name]['scores'], benchmark) for seed in study.config['seeds']
                          if (name := study.get_run_name(of, network, scale, seed, steps)) in finished}
                         for of in (variant, study.baseline))  # seed to image to metrics
    seeds, difference = list(images), None
    is_baseline = study.variants[variant] == study.variants[study.baseline][:steps]
    if seeds and set(seeds) <= reference.keys() and not is_baseline:
        if len(seeds) > 1:
            pairs = [[mean_score(of[seed], 'psnr') for seed in seeds] for of in (images, reference)]
        else:
            pairs = [[of[seeds[0]][image]['psnr'] for image in images[seeds[0]]] for of in (images, reference)]
        difference = compare_pairs(*pairs)
    scores = {metric: [mean_score(images[seed], metric) for seed in seeds] for metric in METRICS}
    return Row(network, scale, variant, study.count_iterations(steps), benchmark, seeds, scores, difference)


def _get_images(scores: Mapping[str, Mapping[str, Any]], benchmark: str) -> Mapping[str, Any]:
    """Image to metrics."""
    if benchmark != POOLED:
        return scores[benchmark]
    return {f'{name}/{image}': values for name, images in scores.items() for image, values in images.items()}


def build_table(rows: Sequence[Row]) -> list[list[str]]:
    """Cells of the table of one network and scale, with the benchmarks side by side."""
    cells: dict[str, list[str]] = {}  # by variant
    header = ['', 'iterations', 'seeds']
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        titles = [title for title, _ in METRICS.values()]
        header += [f'{benchmark} {titles[0]}', *titles[1:], 'difference (dB)']
    for row in rows:
        line = cells.setdefault(row.variant, [row.variant, str(row.iterations), str(len(row.seeds))])
        line += [format_mean(row.scores[metric], digits) for metric, (_, digits) in METRICS.items()]
        line.append('-' if row.difference is None else str(row.difference))
    return [header, *cells.values()]


def build_map_table(study: Study, finished: Finished, network: str, scale: int) -> list[list[str]]:
    """Cells of the table of the uncertainty maps of one network and scale: means over all images, of each variant."""
    table = [['', 'iterations', 'seeds', *(title for title, _ in MAP_METRICS.values())]]
    for variant, steps in study.variants.items():
        names = [study.get_run_name(variant, network, scale, seed) for seed in study.config['seeds']]
        images = [_get_images(finished[name].get('maps', {}), POOLED) for name in names if name in finished]
        images = [one for one in images if one]
        if images:
            table.append([variant, str(study.count_iterations(len(steps))), str(len(images)), *(
                format_mean([mean_score(one, metric) for one in images], digits)
                for metric, (_, digits) in MAP_METRICS.items())])
    return table


def images_csv(study: Study, finished: Finished) -> str:
    """Every image of every finished run."""
    lines: list[tuple[Any, ...]] = [
        ('run', 'network', 'scale', 'losses', 'seed', 'iterations', 'benchmark', 'image', *METRICS)]
    for run in study.runs:
        if run.name in finished:
            of_run = run.name, run.network, run.scale, ' then '.join(run.losses), run.seed, run.iterations
            lines += [(*of_run, *line) for line in list_scores(finished[run.name]['scores'])]
    return to_csv(lines)


def table_csv(rows: Sequence[Row]) -> str:
    """The rows with all digits."""
    lines: list[tuple[Any, ...]] = [
        ('network', 'scale', 'variant', 'iterations', 'benchmark', 'seeds',
         *(column for metric in METRICS for column in (metric, f'{metric}_std')), 'difference', 'low', 'high')]
    for row in rows:
        values: list[float | None] = []
        for means in row.scores.values():
            values += [statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else None]
        mean, interval = row.difference or (None, None)
        values += [mean, *(interval or (None, None))]
        lines.append((row.network, row.scale, row.variant, row.iterations, row.benchmark, len(row.seeds),
                      *('' if value is None else f'{value:.6f}' for value in values)))
    return to_csv(lines)


def build_report(study: Study) -> Report:
    """Tables and plots of the runs that are finished. The Markdown of the tables is in the file `NAME.md`."""
    finished = read_scores(study)
    rows = build_rows(study, finished)
    groups = {key: list(group) for key, group in itertools.groupby(rows, lambda row: (row.network, row.scale))}
    report = Report(f'Study: {study.name}')
    report.add_text(_describe(study, finished))
    tables = {f'{network}, x{scale}': build_table(group) for (network, scale), group in groups.items()}
    for network, scale in groups:
        maps = build_map_table(study, finished, network, scale)
        if len(maps) > 1:
            tables[f'Uncertainty maps, {network}, x{scale}, all images'] = maps
    for title, table in tables.items():
        report.add_heading(title)
        report.add_table(table)
    if groups:
        report.add_heading('Plots')
        report.add_picture(f'{study.name}_differences.png', draw_differences(study, groups),
                           f'PSNR-Y against {study.baseline}, in dB, with 95 % intervals')
        report.add_picture(f'{study.name}_curves.png', draw_curves(study, finished), 'PSNR over iterations on '
                           f'{study.config["val"]["benchmark"]}; bands span the seeds')
    text = '\n\n'.join(f'{title}:\n\n{markdown_table(table)}' for title, table in tables.items())
    report.files.update({f'{study.name}.md': f'{text}\n', f'{study.name}.csv': table_csv(rows),
                         f'{study.name}_images.csv': images_csv(study, finished)})
    return report


def _describe(study: Study, finished: Finished) -> str:
    several = len(study.config['seeds']) > 1
    sentences = [
        f'{len(finished)} of {len(study.runs)} trainings are finished.',
        'PSNR-Y and SSIM-Y are means over the images'
        + (', then mean ± standard deviation over the seeds.' if several else '.'),
        f'Differences are in PSNR-Y from {study.baseline} after equally many iterations, with their 95 % confidence '
        f'interval from paired t-tests over the {"seeds" if several else "images (one seed)"}.']
    if finished:
        hours = sum(one['seconds'] for one in finished.values()) / 3600
        sentences += [f'Trained on: {"; ".join(sorted({one["machine"] for one in finished.values()}))}.',
                      f'All trainings together took {hours:.2f} hours.']
    return ' '.join(sentences)


def draw_differences(study: Study, groups: Mapping[tuple[str, int], Sequence[Row]]) -> bytes:
    """Bars with error bars: one group for each variant, one plot for each network and scale."""
    figure, plots = new_figure(len(groups), height=2.4 + 0.45 * len(study.variants))
    benchmarks = list(study.config['benchmarks'])
    variants = [variant for variant in study.variants if variant != study.baseline]
    for plot, ((network, scale), group) in zip(plots, groups.items()):
        for number, benchmark in enumerate(benchmarks):
            found = {row.variant: row.difference for row in group if row.benchmark == benchmark and row.difference}
            heights = [variants.index(variant) + 0.8 * ((number + 0.5) / len(benchmarks) - 0.5) for variant in found]
            half_intervals = [one.interval[1] - one.mean if one.interval else 0 for one in found.values()]
            plot.barh(heights, [one.mean for one in found.values()], 0.7 / len(benchmarks), label=benchmark,
                      xerr=half_intervals)
        plot.axvline(0, color='black', linewidth=0.8)
        plot.set_yticks(range(len(variants)), variants)
        plot.invert_yaxis()
        plot.set_xlabel(f'PSNR-Y against {study.baseline} (dB)')
        plot.set_title(f'{network}, x{scale}')
    plots[0].legend()
    return encode_figure(figure)


def draw_curves(study: Study, finished: Finished) -> bytes:
    """PSNR in training over the iterations of all steps: mean and range of the seeds."""
    groups = list(itertools.product(study.config['networks'], study.config['scales']))
    figure, plots = new_figure(len(groups), height=5)
    for plot, (network, scale) in zip(plots, groups):
        for variant in study.variants:
            curves = [curve for seed in study.config['seeds']
                      if (curve := _join_curves(study, finished, variant, network, scale, seed))]
            points = sorted(set.intersection(*map(set, curves))) if curves else []
            if points:
                values = np.array([[curve[point] for point in points] for curve in curves])
                line, = plot.plot(points, values.mean(0), label=variant)
                plot.fill_between(points, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
        plot.set_xlabel('iterations')
        plot.set_ylabel(f'PSNR-Y on {study.config["val"]["benchmark"]} (dB)')
        plot.set_title(f'{network}, x{scale}')
        plot.grid(alpha=0.3)
    plots[0].legend()
    return encode_figure(figure)


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
