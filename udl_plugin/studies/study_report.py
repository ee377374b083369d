"""The report of a study."""
from __future__ import annotations

from collections.abc import Sequence

from udl_plugin.inference.provenance import list_provenance
from udl_plugin.studies.config import Study
from udl_plugin.studies.plots import draw_curves, draw_differences
from udl_plugin.studies.report import Report, encode_svg, markdown_table
from udl_plugin.studies.tables import (
    Finished,
    Row,
    build_map_table,
    build_rows,
    build_table,
    images_csv,
    read_scores,
    table_csv,
)

ABOUT_NOISE = ('Grey band: retraining noise, ±2 standard deviations of the difference between two trainings of '
               '{baseline} with different seeds, as many as the variants have, estimated from the spread of its seeds. '
               'Differences are paired by seed, so that their intervals may be narrower.')


def build_report(study: Study) -> Report:
    """Tables and plots of the runs that are finished. The Markdown of the tables is in the file `NAME.md`."""
    finished = read_scores(study)
    rows = build_rows(study, finished)
    report = Report(f'Study: {study.name}')
    report.add_text(_summarize(study, finished))
    _add_plots(report, study, finished, rows)
    texts = []
    for network, scale in dict.fromkeys((row.network, row.scale) for row in rows):
        group = [row for row in rows if (row.network, row.scale) == (network, scale)]
        tables = {benchmark: build_table([row for row in group if row.benchmark == benchmark])
                  for benchmark in dict.fromkeys(row.benchmark for row in group)}
        maps = build_map_table(study, finished, network, scale)
        if len(maps) > 1:
            tables['uncertainty maps, all images'] = maps
        report.add_heading(f'Scores of {network}, x{scale}')
        for title, table in tables.items():
            report.add_heading(title, 3)
            report.add_table(table)
            texts.append(f'{network}, x{scale}, {title}:\n\n{markdown_table(table)}\n')
    _add_trainings(report, study, finished)
    report.add_heading('Provenance')
    report.add_table([('item', 'value'), *list_provenance(study.files)], 'text small')
    report.files.update({f'{study.name}.md': '\n'.join(texts), f'{study.name}.csv': table_csv(rows),
                         f'{study.name}_images.csv': images_csv(study, finished)})
    return report


def _summarize(study: Study, finished: Finished) -> str:
    several = len(study.config['seeds']) > 1
    return ' '.join([
        f'{len(finished)} of {len(study.runs)} trainings are finished.',
        'PSNR-Y and SSIM-Y are means over the images'
        + (', then mean ± standard deviation over the seeds.' if several else '.'),
        f'Differences are in PSNR-Y from {study.baseline} after equally many iterations, with their 95 % confidence '
        f'interval from paired t-tests over the {"seeds" if several else "images (one seed)"}.',
        'In each column the best value is bold and the second best underlined.'])


def _add_plots(report: Report, study: Study, finished: Finished, rows: Sequence[Row]) -> None:
    differences, curves = draw_differences(study, rows), draw_curves(study, finished)
    noise = [ABOUT_NOISE.format(baseline=study.baseline)] * (len(study.config['seeds']) > 1)
    if differences is not None:
        report.add_heading(f'Differences from {study.baseline}')
        report.add_figure(f'{study.name}_differences.svg', encode_svg(differences), ' '.join([
            f'PSNR-Y minus that of {study.baseline} after equally many iterations, in dB, with 95 % confidence '
            'intervals. Blue: above zero; red: below; hollow: the interval includes zero, or there is none. An arrow: '
            'outside of the plot.', *noise]))
    if curves is not None:
        report.add_heading('Training curves')
        report.add_figure(f'{study.name}_curves.svg', encode_svg(curves), ' '.join([
            f'PSNR on {study.config["val"]["benchmark"]} in training minus that of {study.baseline} at the same '
            'iteration: means, and colored ranges, of the seeds.', *noise]))


def _add_trainings(report: Report, study: Study, finished: Finished) -> None:
    """What was trained, and on what."""
    config = study.config
    data = config['datasets']['train']
    batch = data.get('batch_size_per_gpu')
    sentences = [
        f'Seeds: {", ".join(map(str, config["seeds"]))}.',
        f'Training set: {data["dataroot_gt"]}, {f"batches of {batch} " if batch else ""}patches of '
        f'{data["lq_size"]} x {data["lq_size"]} LR pixels.']
    if finished:
        hours = sum(one['seconds'] for one in finished.values()) / 3600
        sentences += [f'Trained on: {"; ".join(sorted({one["machine"] for one in finished.values()}))}.',
                      f'All trainings together took {hours:.2f} hours.']
    report.add_heading('What was trained')
    report.add_text(' '.join(sentences))
    lengths = [step['total_iter'] for step in config['steps'][:len(study.variants[study.baseline])]]
    report.add_table([
        ['variant', *(f'step {number}, {length:,} iterations' for number, length in enumerate(lengths, 1))],
        *([variant, *(step.name for step in steps), *('-' for _ in lengths[len(steps):])]
          for variant, steps in study.variants.items())], 'text')
    report.add_heading('Networks', 3)
    scales = ', '.join(f'x{scale}' for scale in config['scales'])
    report.add_table([['network', 'scales', 'options'], *(
        [name, scales, ', '.join(f'{key}: {value}' for key, value in options.items())]
        for name, options in config['networks'].items())], 'text')
