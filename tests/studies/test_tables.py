import csv
import io
import json
import math
import statistics

import cv2
import numpy as np
import pytest
from conftest import study_config
from scipy.stats import t

from udl_plugin.studies.config import MAP_METRICS, Study
from udl_plugin.studies.report import markdown_table
from udl_plugin.studies.significance import Difference, format_mean
from udl_plugin.studies.tables import (
    POOLED,
    build_map_table,
    build_report,
    build_rows,
    build_table,
    draw_curves,
    read_scores,
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
    assert build_table(get_rows(study))[2][-1].endswith(']')
    (study.folder / 'scores' / 'tiny_x2_L1Loss_then_L1Loss_seed2.json').unlink()
    assert build_table(get_rows(study))[2][-1] == '-'


def test_table_and_files(study):
    report = build_report(study)
    page, files = report.to_html(), report.files
    table = build_table(get_rows(study))
    assert [row[0] for row in table] == ['', 'L1', 'UDL', 'half']
    assert files['tiny.md'] == f'tiny, x2:\n\n{markdown_table(table)}\n'
    assert '<h2>tiny, x2</h2>' in page
    assert 'Trained on: a machine. All trainings together took 12.00 hours.' in page
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
    for name in ('tiny_differences.png', 'tiny_curves.png'):
        assert cv2.imdecode(np.frombuffer(files[name], np.uint8), cv2.IMREAD_COLOR) is not None


def test_maps_are_rated_over_all_images(study):
    for path in (study.folder / 'scores').glob('*ESU*.json'):
        content = json.loads(path.read_text())
        seed = int(path.stem[-1])
        content['maps'] = {'astronaut': {'astronaut': dict.fromkeys(MAP_METRICS, 0.1 * seed)},
                           'Set2': {'one': dict.fromkeys(MAP_METRICS, 0.4), 'two': dict.fromkeys(MAP_METRICS, 0.5)}}
        path.write_text(json.dumps(content))
    table = build_map_table(study, read_scores(study), 'tiny', 2)
    assert [row[0] for row in table] == ['', 'UDL', 'half']
    assert table[1][1:4] == ['10', '3', '0.333 ± 0.033']
    assert markdown_table(table) in build_report(study).files['tiny.md']


def test_nothing_finished(study):
    for path in (study.folder / 'scores').iterdir():
        path.unlink()
    report = build_report(study)
    assert '0 of 12 trainings are finished' in report.to_html()
    assert 'tiny_differences.png' not in report.files


def test_curve_goes_through_all_steps(study, monkeypatch):
    drawn = []
    monkeypatch.setattr('matplotlib.axes.Axes.plot',
                        lambda plot, x, y, **_: drawn.append((list(x), list(y))) or [Line()])
    monkeypatch.setattr('matplotlib.axes.Axes.legend', lambda plot: None)
    draw_curves(study, read_scores(study))
    assert drawn[0] == ([2, 4, 6, 8, 10], [32, 34, 32, 34, 36])
    assert drawn[2] == ([2, 4], [32, 34])


class Line:
    def get_color(self):
        return 'black'


def test_formats():
    assert format_mean([30.1234], 3) == '30.123'
    assert format_mean([30.0, 30.2], 2) == '30.10 ± 0.14'
    assert str(Difference(0.1, None)) == '+0.100'
    assert str(Difference(-0.1, (-0.15, 0.05))) == '-0.100 [-0.150, +0.050]'
