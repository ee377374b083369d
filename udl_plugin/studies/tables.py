"""What came out of a study: means over seeds, differences from the baseline with their intervals, tables and plots."""
import json
import statistics
from typing import NamedTuple

from udl_plugin.studies.report import Heading, Picture, Table, Text, markdown_table, new_figure, png_of, to_csv
from udl_plugin.studies.significance import paired, with_deviation, with_interval


class Row(NamedTuple):
    """A variant on a benchmark.

    Attributes:
        psnr, ssim (list[float]): One for each seed.
        difference (float | None): Of the PSNR from the baseline after as many iterations; None for the baseline itself,
            and where that has not been trained yet.
        interval (tuple[float] | None): Where the mean difference lies with a confidence of 95 %: from paired t-tests,
            the pairs being the seeds, or, of one seed, the images.
        pairs (int): Of how many seeds the two are: those that are finished for variant and baseline.
    """

    network: str
    scale: int
    variant: str
    iterations: int
    benchmark: str
    seeds: list
    psnr: list
    ssim: list
    difference: float
    interval: tuple
    pairs: int


def read_scores(study):
    """Name of run to what the worker wrote, of the runs that are finished."""
    scores = {}
    for run in study.runs:
        path = study.folder / 'scores' / f'{run.name}.json'
        if path.exists():
            scores[run.name] = json.loads(path.read_text())
    return scores


def rows_of(study, finished):
    """The table: a `Row` for each network, scale, variant and benchmark of which at least one seed is finished."""
    rows = []
    for network in study.section['networks']:
        for scale in study.section['scales']:
            for variant in study.variants:
                for benchmark in study.section['benchmarks']:
                    row = _row(study, finished, network, scale, variant, benchmark)
                    if row.seeds:
                        rows.append(row)
    return rows


def _row(study, finished, network, scale, variant, benchmark):
    images, reference = {}, {}  # seed to image to [PSNR, SSIM]
    steps = len(study.variants[variant])
    for seed in study.section['seeds']:
        for name, into in ((study.run_of(variant, network, scale, seed), images),
                           (study.run_of(study.baseline, network, scale, seed, steps), reference)):
            if name in finished:
                into[seed] = finished[name]['scores'][benchmark]
    psnr, ssim = ([statistics.fmean(scores[number] for scores in images[seed].values()) for seed in images]
                  for number in (0, 1))
    difference = interval = None
    pairs = [seed for seed in images if seed in reference]
    if pairs and study.variants[variant] != study.variants[study.baseline][:steps]:
        sides = images, reference
        if len(pairs) > 1:
            ours, theirs = ([statistics.fmean(scores[0] for scores in side[seed].values()) for seed in pairs]
                            for side in sides)
        else:
            ours, theirs = ([side[pairs[0]][name][0] for name in images[pairs[0]]] for side in sides)
        difference, interval = paired(ours, theirs)
    return Row(network, scale, variant, study.iterations(variant), benchmark, list(images), psnr, ssim, difference,
               interval, len(pairs))


def table_of(rows):
    """Cells of the table of one network and scale: the benchmarks side by side."""
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
            line += [with_deviation(row.psnr, 3), with_deviation(row.ssim, 4),
                     with_interval(row.difference, row.interval) + _unlike(row)]
        cells.append(line)
    return cells


def grouped(rows):
    """Network and scale to their rows."""
    groups = {}
    for row in rows:
        groups.setdefault((row.network, row.scale), []).append(row)
    return groups


def raw_csv(study, finished):
    """Every image of every finished run."""
    lines = [('run', 'network', 'scale', 'losses', 'seed', 'iterations', 'benchmark', 'image', 'psnr', 'ssim')]
    for run in study.runs:
        for benchmark, images in finished.get(run.name, {'scores': {}})['scores'].items():
            lines += [(run.name, run.network, run.scale, ' then '.join(run.losses), run.seed, run.iterations, benchmark,
                       image, f'{psnr:.4f}', f'{ssim:.6f}') for image, (psnr, ssim) in sorted(images.items())]
    return to_csv(lines)


def table_csv(rows):
    lines = [('network', 'scale', 'variant', 'iterations', 'benchmark', 'seeds', 'psnr', 'psnr_std', 'ssim', 'ssim_std',
              'difference', 'low', 'high')]
    for row in rows:
        spread = [statistics.stdev(values) if len(values) > 1 else None for values in (row.psnr, row.ssim)]
        figures = (statistics.fmean(row.psnr), spread[0], statistics.fmean(row.ssim), spread[1], row.difference,
                   *(row.interval or (None, None)))
        lines.append((*row[:5], len(row.seeds), *('' if value is None else f'{value:.6f}' for value in figures)))
    return to_csv(lines)


def report_of(study):
    """The parts of the study's report (see udl_plugin/studies/report.py), and its files: name to content."""
    finished = read_scores(study)
    rows = rows_of(study, finished)
    several = len(study.section['seeds']) > 1
    parts = [Text(
        f'{len(finished)} of {len(study.runs)} trainings are finished. PSNR-Y and SSIM-Y are means over the images'
        + (', then mean ± standard deviation over the seeds' if several else '')
        + f'. Differences are those of PSNR-Y from {study.baseline} after as many iterations, with their 95 % '
        f'confidence interval, from paired t-tests over the {"seeds" if several else "images (one seed)"}.')]
    if finished:
        parts.append(Text(_machine(finished)))
    for (network, scale), group in grouped(rows).items():
        parts += [Heading(f'{network}, x{scale}'), Table(table_of(group))]
    table = '\n\n'.join(f'{network}, x{scale}:\n\n{markdown_table(table_of(group))}'
                        for (network, scale), group in grouped(rows).items())
    files = {f'{study.name}.md': table + '\n', f'{study.name}.csv': table_csv(rows),
             f'{study.name}_images.csv': raw_csv(study, finished)}
    if rows:
        pictures = [Picture(f'{study.name}_differences.png', draw_differences(study, rows),
                            f'PSNR-Y against {study.baseline}, in dB, with 95 % intervals'),
                    Picture(f'{study.name}_curves.png', draw_curves(study, finished), 'PSNR over iterations on '
                            f'{study.section["val"]["benchmark"]}; bands span the seeds')]
        parts += [Heading('Plots'), *pictures]
        files.update({picture.name: picture.png for picture in pictures})
    return parts, files


def _machine(finished):
    machines = sorted({one['machine'] for one in finished.values()})
    hours = sum(one['seconds'] for one in finished.values()) / 3600
    resumed = sum(one['resumed'] > 0 for one in finished.values())
    text = f'Trained on: {"; ".join(machines)}. The hours of all trainings add up to {hours:.2f}.'
    return text if not resumed else (
        f'{text} Of the trainings, {resumed} were stopped and went on from a checkpoint; from there on they saw other '
        'crops than they would have.')


def draw_differences(study, rows):
    """Bars with error bars: one group for each variant, one plot for each network and scale."""
    groups = grouped(rows)
    figure, plots = new_figure(len(groups), height=2.4 + 0.45 * len(study.variants))
    benchmarks = list(study.section['benchmarks'])
    variants = [variant for variant in study.variants if variant != study.baseline]
    for plot, ((network, scale), group) in zip(plots, groups.items()):
        for number, benchmark in enumerate(benchmarks):
            found = {row.variant: row for row in group if row.benchmark == benchmark and row.difference is not None}
            at = [variants.index(variant) + 0.8 * ((number + 0.5) / len(benchmarks) - 0.5) for variant in found]
            plot.barh(at, [row.difference for row in found.values()], 0.7 / len(benchmarks), label=benchmark)
            for place, row in zip(at, found.values()):
                if row.interval is not None:
                    plot.plot(row.interval, [place, place], color='black', linewidth=1)
        plot.axvline(0, color='black', linewidth=0.8)
        plot.set_yticks(range(len(variants)), variants)
        plot.invert_yaxis()
        plot.set_xlabel(f'PSNR-Y against {study.baseline} (dB)')
        plot.set_title(f'{network}, x{scale}')
    plots[0].legend()
    return png_of(figure)


def draw_curves(study, finished):
    """PSNR in training over the iterations of all steps, mean and range of the seeds."""
    groups = [(network, scale) for network in study.section['networks'] for scale in study.section['scales']]
    figure, plots = new_figure(len(groups), height=5)
    for plot, (network, scale) in zip(plots, groups):
        for variant in study.variants:
            curves = [curve for seed in study.section['seeds']
                      if (curve := _curve(study, finished, variant, network, scale, seed))]
            points = sorted(set.intersection(*map(set, curves))) if curves else []
            if points:
                values = [[curve[point] for curve in curves] for point in points]
                line, = plot.plot(points, [statistics.fmean(those) for those in values], label=variant)
                plot.fill_between(points, [min(those) for those in values], [max(those) for those in values],
                                  color=line.get_color(), alpha=0.15, linewidth=0)
        plot.set_xlabel('iterations')
        plot.set_ylabel(f'PSNR-Y on {study.section["val"]["benchmark"]} (dB)')
        plot.set_title(f'{network}, x{scale}')
        plot.grid(alpha=0.3)
    plots[0].legend()
    return png_of(figure)


def _curve(study, finished, variant, network, scale, seed):
    """Iteration, counted from the first step, to PSNR; empty where a step is not finished."""
    curve, start = {}, 0
    for step in range(1, len(study.variants[variant]) + 1):
        name = study.run_of(variant, network, scale, seed, step)
        if name not in finished:
            return {}
        total = study.section['steps'][step - 1]['total_iter']
        curve.update({start + int(at): value for at, value in finished[name]['curve'].items() if int(at) <= total})
        start += total
    return curve


def _unlike(row):
    """What of an unfinished study is not as the text says."""
    if row.difference is None or row.pairs == len(row.seeds):
        return ''
    return f' ({row.pairs} seed{"s" * (row.pairs > 1)}{", over images" * (row.pairs == 1)})'
