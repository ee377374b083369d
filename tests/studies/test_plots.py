"""Plots of a study with made-up scores: three seeds, two benchmarks, variants near the baseline and one far from it."""
import json

import numpy as np
import pytest
from conftest import study_config

from udl_plugin.studies.config import Study
from udl_plugin.studies.plots import NOISE, draw_curves, draw_differences, find_views
from udl_plugin.studies.report import encode_svg
from udl_plugin.studies.tables import build_rows, read_scores

GAINS = {('MSELoss', 'MSELoss'): -1.4, ('ESU', 'UDL'): 0.03, ('ESU', 'UDL-offset=0'): 0.1}  # dB over L1
VARIANTS = {'L1': [{'type': 'L1Loss'}] * 2, 'far': [{'type': 'MSELoss'}] * 2,
            'near': [{'type': 'ESU'}, {'type': 'UDL'}], 'above': [{'type': 'ESU'}, {'type': 'UDL', 'offset': 0}],
            'half': [{'type': 'ESU'}]}
PIXELS = 96  # an inch, on a page


def write_study(folder, seeds=(0, 1, 2), variants=('L1', 'far', 'near', 'above', 'half'), **changes):
    study = Study(study_config(seeds=list(seeds), variants={name: VARIANTS[name] for name in variants},
                               benchmarks={'astronaut': 'a', 'Set2': 'b'}, **changes), folder)
    (folder / 'scores').mkdir()
    for run in study.runs:
        generator = np.random.default_rng([*map(ord, run.name)])
        level = 30 + 0.02 * run.seed + GAINS.get(run.losses, 0) + generator.normal(0, 0.005)
        scores = {benchmark: {name: {'psnr': level + generator.normal(0, 0.001), 'ssim': 0.9} for name in names}
                  for benchmark, names in {'astronaut': ['astronaut'], 'Set2': ['one', 'two']}.items()}
        total = run.opt['train']['total_iter']
        (folder / 'scores' / f'{run.name}.json').write_text(json.dumps({
            'seconds': 1, 'machine': 'a machine', 'scores': scores,
            'curve': {str(at): level + at for at in range(2, total + 1, 2)}}))
    return study


def draw(study):
    return draw_differences(study, build_rows(study, read_scores(study)))


def labels(plot):
    return [artist.get_label() for artist in plot.get_children()]


def test_small_differences_are_seen_beside_large_ones(tmp_path):
    figure = draw(write_study(tmp_path))
    figure.draw_without_rendering()
    near, full = figure.axes[:2]
    pixels = np.diff(near.transData.transform([(0, 0), (0.03, 0)])[:, 0]) * PIXELS / figure.dpi
    assert pixels >= 8
    assert near.get_xlim()[0] > -1.4
    assert full.get_xlim()[0] < -1.4
    assert any(text.get_text() == '\N{MINUS SIGN}1.40' for text in near.texts), 'the value, at the edge'


def test_equal_differences_need_one_column(tmp_path):
    figure = draw(write_study(tmp_path, variants=('L1', 'near', 'above')))
    assert [plot.get_title(loc='left') for plot in figure.axes] == ['astronaut', 'Set2', 'all images']
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ['near', 'above']
    dots = [line for line in figure.axes[0].lines if line.get_marker() == 'o']
    assert [float(dot.get_xdata()[0]) for dot in dots] == pytest.approx([0.03, 0.1], abs=0.02)


@pytest.mark.parametrize(('bars', 'near', 'full'), [
    ([(0.01, 0, 0.02)], 0.02, None),
    ([(0.1, 0.05, 0.15), (-0.25, -0.3, -0.2)], 0.3, None),  # one axis shows both
    ([(0.1, 0.05, 0.15), (-1.4, -1.5, -1.3)], 0.15, 1.5),
    ([(0.03, -0.9, 0.96)], 0.15, 0.96),  # with two seeds, an interval is far wider than any difference
    ([(2, 1.9, 2.1), (3, 2.9, 3.1)], 3.1, None),  # all are far
])
def test_views(bars, near, full):
    views = find_views(bars)
    for limits, extent in zip(views, (near, full)):
        assert (limits is None) == (extent is None)
        if limits is not None:
            assert extent < max(map(abs, limits)) < 1.5 * extent


def test_views_resolve_small_differences_whatever_is_between():
    near, _ = find_views([(size, size, size) for size in (0.03, 0.08, 0.2, 0.5, 1.4, -0.2, -0.5)])
    assert near[1] - near[0] < 1.2


@pytest.mark.parametrize('seeds', [(0, 1, 2), (0,)])
def test_retraining_noise_needs_several_seeds(tmp_path, seeds):
    study = write_study(tmp_path, seeds)
    for figure in (draw(study), draw_curves(study, read_scores(study))):
        assert all((NOISE in labels(plot)) == (len(seeds) > 1) for plot in figure.axes)


def test_retraining_noise_has_the_width_of_the_row(tmp_path):
    study = write_study(tmp_path)
    rows = build_rows(study, read_scores(study))
    band = next(artist for artist in draw(study).axes[0].get_children() if artist.get_label() == NOISE)
    points = band.get_paths()[0].vertices
    noise = next(row.noise for row in rows if (row.variant, row.benchmark) == ('near', 'astronaut'))
    at = [variant for variant in study.variants if variant != study.baseline].index('near')
    assert np.abs(points[np.abs(points[:, 1] - at) < 0.6][:, 0]).min() == pytest.approx(2 * noise)


def test_networks_get_plots_of_their_own(tmp_path):
    config = study_config()['networks']['tiny']
    networks = {'tiny': config, 'other': {**config, 'num_feat': 4}}
    study = write_study(tmp_path, variants=('L1', 'near'), networks=networks)
    figure = draw(study)
    assert [plot.get_title(loc='left') for plot in figure.axes] == ['astronaut', 'Set2', 'all images']
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ['tiny x2: near', 'other x2: near']
    study.variants['half'] = study.variants['near'][:1]
    titles = [plot.get_title(loc='left') for plot in draw(study).axes]
    assert [title for title in titles if 'astronaut' in title] == ['tiny x2, astronaut', 'other x2, astronaut']


def test_curves_are_differences_at_the_same_iteration(tmp_path):
    study = write_study(tmp_path)
    finished = read_scores(study)
    plot = draw_curves(study, finished).axes[-1]
    lines = {line.get_label(): line for line in plot.lines}
    assert list(lines['near'].get_xdata()) == [2, 4, 6, 8, 10]
    assert list(lines['half'].get_xdata()) == [2, 4]
    curves = [[finished[study.get_run_name(variant, 'tiny', 2, seed)]['curve']['6'] for seed in range(3)]
              for variant in ('near', 'L1')]
    assert lines['near'].get_ydata()[-1] == pytest.approx(np.mean(curves[0]) - np.mean(curves[1]))
    assert 'L1' not in lines, 'the baseline is the line at zero'


def test_start_of_step_2_is_marked(tmp_path):
    study = write_study(tmp_path)
    figure = draw_curves(study, read_scores(study))
    for plot in figure.axes:
        line = next(line for line in plot.lines if line.get_label() == 'start of step 2')
        assert list(line.get_xdata()) == [4, 4]
    assert '>step 2' in encode_svg(figure)


def test_nothing_to_compare(tmp_path):
    study = write_study(tmp_path, variants=('L1',))
    assert draw(study) is None
    assert draw_curves(study, read_scores(study)) is None
    assert draw_curves(study, {}) is None
