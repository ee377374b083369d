import csv
import hashlib
import io
import json
import math
import statistics
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from conftest import study_config
from scipy.stats import t

from udl_plugin.studies.config import MAP_METRICS, Study, read_study
from udl_plugin.studies.report import markdown_table
from udl_plugin.studies.significance import Difference, format_mean
from udl_plugin.studies.study_report import build_report
from udl_plugin.studies.tables import (
    POOLED,
    build_map_table,
    build_rows,
    build_table,
    read_scores,
    retraining_noise,
)


@pytest.fixture
def study(tmp_path):
    """Three seeds of L1, UDL and a variant of one step, on two benchmarks, with made-up scores."""
    variants = {'L1': [{'type': 'L1Loss'}] * 2, 'UDL': [{'type': 'ESU'}, {'type': 'UDL'}], 'half': [{'type': 'ESU'}]}
    study = Study(study_config(seeds=[0, 1, 2], variants=variants,
                                benchmarks={'astronaut': 'a', 'Set2': 'b'}), tmp_path)
    (tmp_path / 'scores').mkdir()
    for run in study.runs:
        write_scores(study, run)
    return study


def psnr_of(run, image):
    generator = np.random.default_rng([*map(ord, ''.join(run.losses)), run.seed, *map(ord, image)])
    return 30 + run.iterations / 100 + generator.normal()


def write_scores(study, run):
    images = {'astronaut': ['astronaut'], 'Set2': ['one', 'two']}
    scores = {benchmark: {image: {'psnr': psnr_of(run, image), 'ssim': 0.9} for image in names}
              for benchmark, names in images.items()}
    total = run.opt['train']['total_iter']
    (study.folder / 'scores' / f'{run.name}.json').write_text(json.dumps({
        'seconds': 3600, 'machine': 'a machine', 'scores': scores,
        'curve': {str(at): 30 + at for at in range(2, total + 1, 2)}}))


def mean_psnr(study, losses, seed):
    run = next(run for run in study.runs if run.losses == losses and run.seed == seed)
    return statistics.fmean([psnr_of(run, 'one'), psnr_of(run, 'two')])


def get_rows(study):
    return build_rows(study, read_scores(study))


def get_table(study, benchmark='Set2'):
    return build_table([row for row in get_rows(study) if row.benchmark == benchmark])


def find(rows, variant, benchmark):
    return next(row for row in rows if (row.variant, row.benchmark) == (variant, benchmark))


def test_difference_and_interval_are_paired_by_seed(study):
    row = find(get_rows(study), 'UDL', 'Set2')
    ours = [mean_psnr(study, ('ESU', 'UDL'), seed) for seed in range(3)]
    theirs = [mean_psnr(study, ('L1Loss', 'L1Loss'), seed) for seed in range(3)]
    differences = [one - other for one, other in zip(ours, theirs)]
    half = t.ppf(0.975, 2) * statistics.stdev(differences) / math.sqrt(3)
    assert row.scores['psnr'] == pytest.approx(ours)
    mean, interval = row.difference
    assert mean == pytest.approx(statistics.fmean(differences))
    assert interval == pytest.approx((mean - half, mean + half))
    assert row.iterations == 10


def test_pooled_images_count_alike(study):
    rows = get_rows(study)
    finished = read_scores(study)
    for variant in ('L1', 'UDL'):
        row = find(rows, variant, POOLED)
        for seed, mean in zip(row.seeds, row.scores['psnr']):
            scores = finished[study.get_run_name(variant, 'tiny', 2, seed)]['scores']
            assert mean == pytest.approx(statistics.fmean(
                image['psnr'] for images in scores.values() for image in images.values()))
    assert find(rows, 'UDL', POOLED).difference.interval is not None


def test_shorter_variant_is_compared_after_equal_iterations(study):
    row = find(get_rows(study), 'half', 'Set2')
    differences = [mean_psnr(study, ('ESU',), seed) - mean_psnr(study, ('L1Loss',), seed) for seed in range(3)]
    assert row.iterations == 4
    assert row.difference.mean == pytest.approx(statistics.fmean(differences))


def test_one_seed_is_compared_over_images(study):
    for path in (study.folder / 'scores').glob('*seed[12].json'):
        path.unlink()
    rows = get_rows(study)
    row = find(rows, 'UDL', 'Set2')
    runs = {run.losses: run for run in study.runs if run.seed == 0}
    differences = [psnr_of(runs['ESU', 'UDL'], image) - psnr_of(runs['L1Loss', 'L1Loss'], image)
                   for image in ('one', 'two')]
    half = t.ppf(0.975, 1) * statistics.stdev(differences) / math.sqrt(2)
    mean, interval = row.difference
    assert interval == pytest.approx((mean - half, mean + half))
    assert find(rows, 'UDL', 'astronaut').difference.interval is None  # a single image
    assert find(rows, 'L1', 'Set2').difference is None


def test_unfinished_runs_are_left_out(study):
    (study.folder / 'scores' / 'tiny_x2_ESU_then_UDL_seed2.json').unlink()
    for path in (study.folder / 'scores').glob('tiny_x2_ESU_seed*.json'):
        path.unlink()
    rows = get_rows(study)
    assert len(find(rows, 'UDL', 'Set2').seeds) == 2
    assert {row.variant for row in rows} == {'L1', 'UDL'}


def test_no_difference_from_a_baseline_with_fewer_seeds(study):
    assert get_table(study)[2][3].endswith(']')
    (study.folder / 'scores' / 'tiny_x2_L1Loss_then_L1Loss_seed2.json').unlink()
    assert get_table(study)[2][3] == '-'


def test_retraining_noise_is_that_of_the_baseline(study):
    row = find(get_rows(study), 'UDL', 'Set2')
    theirs = [mean_psnr(study, ('L1Loss', 'L1Loss'), seed) for seed in range(3)]
    assert row.noise == pytest.approx(statistics.stdev(theirs) * math.sqrt(2 / 3))
    assert find(get_rows(study), 'half', 'Set2').noise == pytest.approx(
        retraining_noise([mean_psnr(study, ('L1Loss',), seed) for seed in range(3)]))
    assert find(get_rows(study), 'L1', 'Set2').noise is None
    for path in (study.folder / 'scores').glob('*seed[12].json'):
        path.unlink()
    assert find(get_rows(study), 'UDL', 'Set2').noise is None


def test_best_and_second_best_of_a_benchmark(study):
    for benchmark in ('Set2', 'astronaut'):
        rows = [row for row in get_rows(study) if row.benchmark == benchmark]
        table = build_table(rows)
        means = [statistics.fmean(row.scores['psnr']) for row in rows]
        best, second, last = sorted(range(3), key=means.__getitem__, reverse=True)
        cells = [line[1] for line in table[1:]]
        plain = [format_mean(row.scores['psnr'], 3) for row in rows]
        assert cells[best] == f'**{plain[best]}**'
        assert cells[second] == f'<u>{plain[second]}</u>'
        assert cells[last] == plain[last]
        assert [line[2] for line in table[1:]] == 3 * ['0.9000 ± 0.0000'], 'equal values are not marked'


def test_table_and_files(study):
    report = build_report(study)
    page, files = report.to_html(), report.files
    table = get_table(study)
    assert table[0] == ['variant', 'PSNR-Y (dB)', 'SSIM-Y', 'difference (dB)', 'iterations', 'seeds']
    assert [row[0] for row in table] == ['variant', 'L1', 'UDL', 'half']
    assert files['tiny.md'] == '\n'.join(f'tiny, x2, {benchmark}:\n\n{markdown_table(get_table(study, benchmark))}\n'
                                         for benchmark in ('astronaut', 'Set2', POOLED))
    assert '<h2>Scores of tiny, x2</h2>\n<h3>astronaut</h3>' in page
    udl = find(get_rows(study), 'UDL', 'Set2')
    psnr = udl.scores['psnr']
    assert f'{statistics.fmean(psnr):.3f} ± {statistics.stdev(psnr):.3f}' in files['tiny.md']
    mean, (low, high) = udl.difference
    assert f'| {mean:+.3f} [{low:+.3f}, {high:+.3f}] |' in files['tiny.md']
    lines = list(csv.DictReader(io.StringIO(files['tiny.csv'])))
    line = next(line for line in lines if (line['variant'], line['benchmark']) == ('UDL', 'Set2'))
    assert [float(line[name]) for name in ('difference', 'low', 'high')] == pytest.approx([mean, low, high], abs=1e-6)
    images = list(csv.DictReader(io.StringIO(files['tiny_images.csv'])))
    assert len(images) == 4 * 3 * 3
    for name in ('tiny_differences.svg', 'tiny_curves.svg'):
        assert ElementTree.fromstring(files[name]).tag.endswith('svg')


def test_report_says_what_was_trained_and_where_it_comes_from(study, tmp_path):
    (tmp_path / 'tiny.yml').write_text(yaml.safe_dump(study.config))
    page = build_report(read_study(tmp_path / 'tiny.yml', study.folder)).to_html()
    assert 'Trained on: a machine. All trainings together took 12.00 hours.' in page
    assert 'batches of 2 patches of 12 x 12 LR pixels' in page
    assert '<th>step 1, 4 iterations</th><th>step 2, 6 iterations</th>' in page
    assert '<tr><td>UDL</td><td>ESU</td><td>UDL</td></tr>' in page
    assert '<tr><td>half</td><td>ESU</td><td>-</td></tr>' in page
    assert hashlib.sha256((tmp_path / 'tiny.yml').read_bytes()).hexdigest() in page.partition('Provenance')[2]


def test_maps_are_rated_over_all_images(study):
    """A smaller AUSE and calibration error are better, a larger Spearman, and neither of the sparsity."""
    for path in (study.folder / 'scores').glob('*ESU*.json'):
        content = json.loads(path.read_text())
        seed, step = int(path.stem[-1]), 0.1 * ('UDL' in path.stem)
        content['maps'] = {'astronaut': {'astronaut': dict.fromkeys(MAP_METRICS, 0.1 * seed + step)},
                           'Set2': {'one': dict.fromkeys(MAP_METRICS, 0.4), 'two': dict.fromkeys(MAP_METRICS, 0.5)}}
        path.write_text(json.dumps(content))
    table = build_map_table(study, read_scores(study), 'tiny', 2)
    worse, better = '0.367 ± 0.033', '0.333 ± 0.033'
    assert table[1:] == [['UDL', worse, worse, f'**{worse}**', worse, '10', '3'],
                         ['half', f'**{better}**', f'**{better}**', better, better, '4', '3']]
    assert f'tiny, x2, uncertainty maps, all images:\n\n{markdown_table(table)}' in build_report(study).files['tiny.md']


def test_nothing_finished(study):
    for path in (study.folder / 'scores').iterdir():
        path.unlink()
    report = build_report(study)
    assert '0 of 12 trainings are finished' in report.to_html()
    assert not [name for name in report.files if name.endswith('.svg')]


def test_formats():
    assert format_mean([30.1234], 3) == '30.123'
    assert format_mean([30.0, 30.2], 2) == '30.10 ± 0.14'
    assert str(Difference(0.1, None)) == '+0.100'
    assert str(Difference(-0.1, (-0.15, 0.05))) == '-0.100 [-0.150, +0.050]'
