"""Results of a study: means over seeds, differences from the baseline with their intervals, tables and plots."""
from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from udl_plugin.studies.config import Study
from udl_plugin.studies.report import (
    Files,
    Heading,
    Part,
    Picture,
    Table,
    Text,
    encode_figure,
    markdown_table,
    new_figure,
    to_csv,
)
from udl_plugin.studies.significance import Difference, compare_pairs, format_mean

METRICS = ('psnr', 'ssim')
Finished = Mapping[str, Mapping[str, Any]]  # name of a run to what the worker wrote


@dataclass(frozen=True)
class Row:
    """A variant on a benchmark.

    Attributes:
        iterations: Of all its steps.
        seeds: Those that are finished.
        psnr, ssim: Means over the images, one for each seed.
        difference: Of the PSNR from that of the baseline after equally many iterations. Seeds are paired; with one
            seed, images. None for the baseline itself, and while that is not trained.
        pairs: The number of seeds that the difference is computed from: finished for variant and baseline.
    """

    network: str
    scale: int
    variant: str
    iterations: int
    benchmark: str
    seeds: Sequence[int]
    psnr: Sequence[float]
    ssim: Sequence[float]
    difference: Difference | None
    pairs: int


def read_scores(study: Study) -> dict[str, dict[str, Any]]:
    """What the worker wrote for each finished run, by name."""
    finished = {}
    for run in study.runs:
        path = study.folder / 'scores' / f'{run.name}.json'
        if path.exists():
            finished[run.name] = json.loads(path.read_text())
            for images in finished[run.name]['scores'].values():
                for image, scores in images.items():
                    if isinstance(scores, list):  # written by an earlier version
                        images[image] = dict(zip(METRICS, scores))
    return finished


def build_rows(study: Study, finished: Finished) -> list[Row]:
    """A row for each network, scale, variant and benchmark for which at least one seed is finished."""
    rows = (_build_row(study, finished, network, scale, variant, benchmark)
            for network in study.config['networks'] for scale in study.config['scales']
            for variant in study.variants for benchmark in study.config['benchmarks'])
    return [row for row in rows if row.seeds]


def _build_row(study: Study, finished: Finished, network: str, scale: int, variant: str, benchmark: str) -> Row:
    steps = len(study.variants[variant])
    images, reference = ({seed: finished[name]['scores'][benchmark] for seed in study.config['seeds']
                          if (name := study.get_run_name(of, network, scale, seed, steps)) in finished}
                         for of in (variant, study.baseline))  # seed to image to metrics
    means = {metric: {seed: _mean(images[seed], metric) for seed in images} for metric in METRICS}
    pairs, difference = [seed for seed in images if seed in reference], None
    if pairs and study.variants[variant] != study.variants[study.baseline][:steps]:
        if len(pairs) > 1:
            difference = compare_pairs([means['psnr'][seed] for seed in pairs],
                                       [_mean(reference[seed], 'psnr') for seed in pairs])
        else:
            ours, theirs = images[pairs[0]], reference[pairs[0]]
            difference = compare_pairs([ours[name]['psnr'] for name in ours], [theirs[name]['psnr'] for name in ours])
    return Row(network, scale, variant, study.count_iterations(steps), benchmark, list(images),
               list(means['psnr'].values()), list(means['ssim'].values()), difference, len(pairs))


def _mean(images: Mapping[str, Mapping[str, float]], metric: str) -> float:
    return statistics.fmean(scores[metric] for scores in images.values())


def build_table(rows: Sequence[Row]) -> list[list[str]]:
    """Cells of the table of one network and scale, with the benchmarks side by side."""
    benchmarks = list(dict.fromkeys(row.benchmark for row in rows))
    header = ['', 'iterations', 'seeds']
    for benchmark in benchmarks:
        header += [f'{benchmark} PSNR-Y (dB)', 'SSIM-Y', 'difference (dB)']
    cells = [header]
    for variant in dict.fromkeys(row.variant for row in rows):
        of_variant = {row.benchmark: row for row in rows if row.variant == variant}
        first = next(iter(of_variant.values()))
        line = [variant, str(first.iterations), str(len(first.seeds))]
        for benchmark in benchmarks:
            row = of_variant[benchmark]
            line += [format_mean(row.psnr, 3), format_mean(row.ssim, 4), _format_difference(row)]
        cells.append(line)
    return cells


def _format_difference(row: Row) -> str:
    """Says which seeds it is computed from, if these are not all that the row has."""
    if row.difference is None or row.pairs == len(row.seeds):
        return '-' if row.difference is None else str(row.difference)
    return f'{row.difference} ({row.pairs} seed{"s" * (row.pairs > 1)}{", over images" * (row.pairs == 1)})'


def group_rows(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    """The rows of each network and scale."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.network, row.scale), []).append(row)
    return groups


def images_csv(study: Study, finished: Finished) -> str:
    """Every image of every finished run."""
    lines: list[tuple] = [
        ('run', 'network', 'scale', 'losses', 'seed', 'iterations', 'benchmark', 'image', 'psnr', 'ssim')]
    for run in study.runs:
        for benchmark, images in finished.get(run.name, {'scores': {}})['scores'].items():
            lines += [(run.name, run.network, run.scale, ' then '.join(run.losses), run.seed, run.iterations, benchmark,
                       image, f'{one["psnr"]:.4f}', f'{one["ssim"]:.6f}') for image, one in sorted(images.items())]
    return to_csv(lines)


def table_csv(rows: Sequence[Row]) -> str:
    lines: list[tuple] = [('network', 'scale', 'variant', 'iterations', 'benchmark', 'seeds', 'psnr', 'psnr_std',
                           'ssim', 'ssim_std', 'difference', 'low', 'high')]
    for row in rows:
        values: list[float | None] = []
        for metric in (row.psnr, row.ssim):
            values += [statistics.fmean(metric), statistics.stdev(metric) if len(metric) > 1 else None]
        mean, interval = row.difference or (None, None)
        values += [mean, *(interval or (None, None))]
        lines.append((row.network, row.scale, row.variant, row.iterations, row.benchmark, len(row.seeds),
                      *('' if value is None else f'{value:.6f}' for value in values)))
    return to_csv(lines)


def build_report(study: Study) -> tuple[list[Part], Files]:
    """The parts of the study's report (see udl_plugin/studies/report.py), and its files."""
    finished = read_scores(study)
    groups = group_rows(build_rows(study, finished))
    several = len(study.config['seeds']) > 1
    parts: list[Part] = [Text(
        f'{len(finished)} of {len(study.runs)} trainings are finished. PSNR-Y and SSIM-Y are means over the images'
        + (', then mean ± standard deviation over the seeds' if several else '')
        + f'. Differences are in PSNR-Y from {study.baseline} after equally many iterations, with their 95 % '
        f'confidence interval from paired t-tests over the {"seeds" if several else "images (one seed)"}.')]
    if finished:
        parts.append(Text(_describe_training(finished)))
    tables = {f'{network}, x{scale}': build_table(group) for (network, scale), group in groups.items()}
    for title, table in tables.items():
        parts += [Heading(title), Table(table)]
    files: Files = {
        f'{study.name}.md': '\n\n'.join(f'{title}:\n\n{markdown_table(table)}'
                                        for title, table in tables.items()) + '\n',
        f'{study.name}.csv': table_csv([row for group in groups.values() for row in group]),
        f'{study.name}_images.csv': images_csv(study, finished)}
    if groups:
        pictures = [Picture(f'{study.name}_differences.png', draw_differences(study, groups),
                            f'PSNR-Y against {study.baseline}, in dB, with 95 % intervals'),
                    Picture(f'{study.name}_curves.png', draw_curves(study, finished), 'PSNR over iterations on '
                            f'{study.config["val"]["benchmark"]}; bands span the seeds')]
        parts += [Heading('Plots'), *pictures]
        files.update({picture.name: picture.png for picture in pictures})
    return parts, files


def _describe_training(finished: Finished) -> str:
    machines = sorted({one['machine'] for one in finished.values()})
    hours = sum(one['seconds'] for one in finished.values()) / 3600
    resumed = sum(one['resumed'] > 0 for one in finished.values())
    text = f'Trained on: {"; ".join(machines)}. All trainings together took {hours:.2f} hours.'
    return text if not resumed else (f'{text} Interrupted and resumed trainings: {resumed}. Resuming is exact: they '
                                     'saw the same crops as without the interruption.')


def draw_differences(study: Study, groups: Mapping[tuple[str, int], Sequence[Row]]) -> bytes:
    """Bars with error bars: one group for each variant, one plot for each network and scale."""
    figure, plots = new_figure(len(groups), height=2.4 + 0.45 * len(study.variants))
    benchmarks = list(study.config['benchmarks'])
    variants = [variant for variant in study.variants if variant != study.baseline]
    for plot, ((network, scale), group) in zip(plots, groups.items()):
        for number, benchmark in enumerate(benchmarks):
            found = {row.variant: row.difference for row in group if row.benchmark == benchmark and row.difference}
            heights = [variants.index(variant) + 0.8 * ((number + 0.5) / len(benchmarks) - 0.5) for variant in found]
            plot.barh(heights, [one.mean for one in found.values()], 0.7 / len(benchmarks), label=benchmark)
            for height, one in zip(heights, found.values()):
                if one.interval is not None:
                    plot.plot(one.interval, [height, height], color='black', linewidth=1)
        plot.axvline(0, color='black', linewidth=0.8)
        plot.set_yticks(range(len(variants)), variants)
        plot.invert_yaxis()
        plot.set_xlabel(f'PSNR-Y against {study.baseline} (dB)')
        plot.set_title(f'{network}, x{scale}')
    plots[0].legend()
    return encode_figure(figure)


def draw_curves(study: Study, finished: Finished) -> bytes:
    """PSNR in training over the iterations of all steps: mean and range of the seeds."""
    groups = [(network, scale) for network in study.config['networks'] for scale in study.config['scales']]
    figure, plots = new_figure(len(groups), height=5)
    for plot, (network, scale) in zip(plots, groups):
        for variant in study.variants:
            curves = [curve for seed in study.config['seeds']
                      if (curve := _join_curves(study, finished, variant, network, scale, seed))]
            points = sorted(set.intersection(*map(set, curves))) if curves else []
            if points:
                values = [[curve[point] for curve in curves] for point in points]
                line, = plot.plot(points, [statistics.fmean(those) for those in values], label=variant)
                plot.fill_between(points, [min(those) for those in values], [max(those) for those in values],
                                  color=line.get_color(), alpha=0.15, linewidth=0)
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
