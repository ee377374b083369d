"""Results of a study: means over seeds, differences from the baseline with their intervals, and tables."""
from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from udl_plugin.inference.html_table import mark_best
from udl_plugin.studies.config import BETTER, MAP_METRICS, METRICS, Study
from udl_plugin.studies.evaluate import list_scores, mean_score
from udl_plugin.studies.report import to_csv
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
        noise: Standard deviation that `difference` would have if the baseline was trained again with other seeds:
            `retraining_noise` of the baseline. None where `difference` is None, and with one seed.
    """

    network: str
    scale: int
    variant: str
    iterations: int
    benchmark: str
    seeds: Sequence[int]
    scores: Mapping[str, Sequence[float]]
    difference: Difference | None
    noise: float | None


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
    seeds, difference, noise = list(images), None, None
    is_baseline = study.variants[variant] == study.variants[study.baseline][:steps]
    if seeds and set(seeds) <= reference.keys() and not is_baseline:
        if len(seeds) > 1:
            pairs = [[mean_score(of[seed], 'psnr') for seed in seeds] for of in (images, reference)]
            noise = retraining_noise(pairs[1])
        else:
            pairs = [[of[seeds[0]][image]['psnr'] for image in images[seeds[0]]] for of in (images, reference)]
        difference = compare_pairs(*pairs)
    scores = {metric: [mean_score(images[seed], metric) for seed in seeds] for metric in METRICS}
    return Row(network, scale, variant, study.count_iterations(steps), benchmark, seeds, scores, difference,
               noise)


def _get_images(scores: Mapping[str, Mapping[str, Any]], benchmark: str) -> Mapping[str, Any]:
    """Image to metrics."""
    if benchmark != POOLED:
        return scores[benchmark]
    return {f'{name}/{image}': values for name, images in scores.items() for image, values in images.items()}


def retraining_noise(values: Sequence[float]) -> float:
    """Standard deviation of the difference between the mean of these values, one a seed, and that of as many others."""
    return statistics.stdev(values) * math.sqrt(2 / len(values))


def build_table(rows: Sequence[Row]) -> list[list[str]]:
    """Cells of the table of one network, scale and benchmark. The best and second best of a metric are marked."""
    columns = [[format_mean(row.scores[metric], digits) for row in rows] for metric, (_, digits) in METRICS.items()]
    columns = [mark_best(column, BETTER[metric], [statistics.fmean(row.scores[metric]) for row in rows])
               for metric, column in zip(METRICS, columns)]
    header = ['variant', *(title for title, _ in METRICS.values()), 'difference (dB)', 'iterations', 'seeds']
    return [header, *([row.variant, *cells, '-' if row.difference is None else str(row.difference),
                       str(row.iterations), str(len(row.seeds))] for row, *cells in zip(rows, *columns))]


def build_map_table(study: Study, finished: Finished, network: str, scale: int) -> list[list[str]]:
    """Cells of the table of the uncertainty maps of one network and scale: means over all images, of each variant.

    The best and second best of a metric are marked.
    """
    means: dict[str, list[dict[str, float]]] = {}  # variant to metrics, of each seed
    for variant in study.variants:
        names = [study.get_run_name(variant, network, scale, seed) for seed in study.config['seeds']]
        images = [_get_images(finished[name].get('maps', {}), POOLED) for name in names if name in finished]
        if found := [{metric: mean_score(one, metric) for metric in MAP_METRICS} for one in images if one]:
            means[variant] = found
    columns = []
    for metric, (_, digits) in MAP_METRICS.items():
        values = [[one[metric] for one in seeds] for seeds in means.values()]
        cells = [format_mean(one, digits) for one in values]
        columns.append(mark_best(cells, BETTER.get(metric), [statistics.fmean(one) for one in values]))
    header = ['variant', *(title for title, _ in MAP_METRICS.values()), 'iterations', 'seeds']
    return [header, *([variant, *cells, str(study.count_iterations(len(study.variants[variant]))),
                       str(len(means[variant]))] for variant, *cells in zip(means, *columns))]


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
