import csv
import io
import json
import math
import statistics

import cv2
import numpy as np
import pytest
from conftest import study_section
from scipy.stats import t

from udl_plugin.studies.config import Study
from udl_plugin.studies.report import Heading, Picture, Table
from udl_plugin.studies.significance import with_deviation
from udl_plugin.studies.tables import draw_curves, read_scores, report_of, rows_of, table_of


@pytest.fixture
def study(tmp_path):
    """Three seeds of L1, UDL and a variant of one step, on two benchmarks, with made-up scores."""
    variants = {'L1': [{'type': 'L1Loss'}] * 2, 'UDL': [{'type': 'ESU'}, {'type': 'UDL'}], 'half': [{'type': 'ESU'}]}
    study = Study(study_section(seeds=[0, 1, 2], variants=variants,
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
    scores = {benchmark: {image: [psnr_of(run, image), 0.9] for image in names} for benchmark, names in images.items()}
    total = run.opt['train']['total_iter']
    (study.folder / 'scores' / f'{run.name}.json').write_text(json.dumps({
        'seconds': 3600, 'resumed': 0, 'machine': 'a machine', 'scores': scores,
        'curve': {str(at): 30 + at for at in range(2, total + 1, 2)}}))


def mean_psnr(study, losses, seed):
    run = next(run for run in study.runs if run.losses == losses and run.seed == seed)
    return statistics.fmean([psnr_of(run, 'one'), psnr_of(run, 'two')])


def find(rows, variant, benchmark):
    return next(row for row in rows if (row.variant, row.benchmark) == (variant, benchmark))


def test_difference_and_interval_are_paired_by_seed(study):
    row = find(rows_of(study, read_scores(study)), 'UDL', 'Set2')
    ours = [mean_psnr(study, ('ESU', 'UDL'), seed) for seed in range(3)]
    theirs = [mean_psnr(study, ('L1Loss', 'L1Loss'), seed) for seed in range(3)]
    differences = [one - other for one, other in zip(ours, theirs)]
    half = t.ppf(0.975, 2) * statistics.stdev(differences) / math.sqrt(3)
    assert row.psnr == pytest.approx(ours)
    assert row.difference == pytest.approx(statistics.fmean(differences))
    assert row.interval == pytest.approx((row.difference - half, row.difference + half))
    assert row.iterations == 10


def test_a_shorter_variant_is_compared_after_as_many_iterations(study):
    row = find(rows_of(study, read_scores(study)), 'half', 'Set2')
    differences = [mean_psnr(study, ('ESU',), seed) - mean_psnr(study, ('L1Loss',), seed) for seed in range(3)]
    assert row.iterations == 4
    assert row.difference == pytest.approx(statistics.fmean(differences))


def test_of_one_seed_the_pairs_are_images(study):
    for path in (study.folder / 'scores').glob('*seed[12].json'):
        path.unlink()
    rows = rows_of(study, read_scores(study))
    row = find(rows, 'UDL', 'Set2')
    runs = {run.losses: run for run in study.runs if run.seed == 0}
    differences = [psnr_of(runs['ESU', 'UDL'], image) - psnr_of(runs['L1Loss', 'L1Loss'], image)
                   for image in ('one', 'two')]
    half = t.ppf(0.975, 1) * statistics.stdev(differences) / math.sqrt(2)
    assert row.interval == pytest.approx((row.difference - half, row.difference + half))
    assert find(rows, 'UDL', 'astronaut').interval is None  # of one image
    assert find(rows, 'L1', 'Set2').difference is None


def test_what_is_not_finished_is_left_out(study):
    (study.folder / 'scores' / 'tiny_x2_ESU_then_UDL_seed2.json').unlink()
    for path in (study.folder / 'scores').glob('tiny_x2_ESU_seed*.json'):
        path.unlink()
    rows = rows_of(study, read_scores(study))
    assert len(find(rows, 'UDL', 'Set2').seeds) == 2
    assert {row.variant for row in rows} == {'L1', 'UDL'}


def test_pairs_of_an_unfinished_study_are_told(study):
    (study.folder / 'scores' / 'tiny_x2_L1Loss_then_L1Loss_seed2.json').unlink()
    assert table_of(rows_of(study, read_scores(study)))[2][-1].endswith('] (2 seeds)')
    (study.folder / 'scores' / 'tiny_x2_L1Loss_then_L1Loss_seed1.json').unlink()
    assert table_of(rows_of(study, read_scores(study)))[2][-1].endswith('] (1 seed, over images)')


def test_table_and_files(study):
    parts, files = report_of(study)
    table = next(part for part in parts if isinstance(part, Table))
    assert table.rows == table_of(rows_of(study, read_scores(study)))
    assert [row[0] for row in table.rows] == ['', 'L1', 'UDL', 'half']
    assert Heading('tiny, x2') in parts
    assert 'Trained on: a machine. The hours of all trainings add up to 12.00.' in parts[1].text
    udl = find(rows_of(study, read_scores(study)), 'UDL', 'Set2')
    assert f'{statistics.fmean(udl.psnr):.3f} ± {statistics.stdev(udl.psnr):.3f}' in files['tiny.md']
    assert f'{udl.difference:+.3f} [{udl.interval[0]:+.3f}, {udl.interval[1]:+.3f}]' in files['tiny.md']
    lines = list(csv.DictReader(io.StringIO(files['tiny.csv'])))
    line = next(line for line in lines if (line['variant'], line['benchmark']) == ('UDL', 'Set2'))
    assert float(line['difference']) == pytest.approx(udl.difference, abs=1e-6)
    images = list(csv.DictReader(io.StringIO(files['tiny_images.csv'])))
    assert len(images) == 4 * 3 * 3
    for part in parts:
        if isinstance(part, Picture):
            assert cv2.imdecode(np.frombuffer(part.png, np.uint8), cv2.IMREAD_COLOR) is not None
            assert files[part.name] == part.png


def test_nothing_finished(study):
    for path in (study.folder / 'scores').iterdir():
        path.unlink()
    parts, files = report_of(study)
    assert '0 of 12 trainings are finished' in parts[0].text
    assert 'tiny_differences.png' not in files


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


def test_deviation():
    assert with_deviation([30.1234], 3) == '30.123'
    assert with_deviation([30.0, 30.2], 2) == '30.10 ± 0.14'
