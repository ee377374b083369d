import csv
import functools

import cv2
import numpy as np
import pytest
import torch
import yaml
from authors_network import AuthorsEDSR
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from basicsr.archs.swinir_arch import SwinIR
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.utils import get_root_logger
from conftest import OPTIONS, TINY

from udl_plugin.archs import DPDNNVar, EDSRTwo, EDSRVar
from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.cli.compare import main
from udl_plugin.data.lmdb_io import encode
from udl_plugin.errors import UserError
from udl_plugin.inference import comparison_page, cost
from udl_plugin.inference.upscaler import Upscaler
from udl_plugin.inference.visualize import absolute_error, heat_map, round_limit, swap_red_blue
from udl_plugin.metrics import uncertainty_metrics
from udl_plugin.prepare.datasets import prepare_benchmark
from udl_plugin.prepare.demo_data import validation_photos
from udl_plugin.studies import compare_report
from udl_plugin.studies.compare import (
    BICUBIC,
    CompareResult,
    compare,
    find_benchmarks,
    find_sample,
    rate_map,
    read_entries,
)
from udl_plugin.studies.compare_report import (
    build_html_map_table,
    build_html_tables,
    build_image_tables,
    build_map_table,
    build_table,
    draw_crops,
    find_boxes,
)
from udl_plugin.utils.atomic_io import atomic_write
from udl_plugin.utils.imresize import imresize

VAR = {'type': 'EDSRVar', **TINY}
SWINIR = {'upscale': 2, 'window_size': 8, 'img_size': 16, 'depths': [2], 'embed_dim': 12, 'num_heads': [2],
          'mlp_ratio': 2, 'upsampler': 'pixelshuffle'}


@pytest.fixture(scope='module', autouse=True)
def measure_memory_once():
    """It takes a new process each time; tests/inference/test_cost.py measures more networks."""
    with pytest.MonkeyPatch.context() as patch:
        measured = functools.cache(lambda measure=cost.peak_memory: measure({'type': 'EDSR', **TINY}, (1, 3, 50, 60)))
        patch.setattr(cost, 'peak_memory', lambda network_g, shape: measured())
        yield


@pytest.fixture(scope='module')
def benchmarks(tmp_path_factory):
    """Two benchmarks of parts of a photo; some sizes are not multiples of SwinIR's window."""
    folder = tmp_path_factory.mktemp('benchmarks')
    photo = validation_photos()['astronaut']
    for name, parts in {'One': {'face': photo[40:140, 170:290]},
                        'Two': {'odd': photo[:70, :58], 'plain': photo[100:148, 300:364]}}.items():
        for part, image in parts.items():
            atomic_write(folder / 'photos' / name / f'{part}.png', encode(image))
        prepare_benchmark(folder / 'photos' / name, [2], folder, name=name)
    return folder


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Checkpoints of several networks, and test ymls."""
    folder = tmp_path_factory.mktemp('models')
    torch.manual_seed(0)
    var, two = EDSRVar(**TINY), EDSRTwo(**TINY)
    with torch.no_grad():
        var.var_conv[-2].weight *= 3  # for a map that varies
    two.load_state_dict(var.state_dict())
    save_checkpoint(folder / 'var.pth', {'params': var.state_dict()}, VAR)
    save_checkpoint(folder / 'experiments/run/models/net_g_latest.pth', {'params': two.state_dict()},
                     {'type': 'EDSRTwo', **TINY})
    torch.save({'params': RCAN(num_in_ch=3, num_out_ch=3, num_feat=8, num_group=1, num_block=1, squeeze_factor=4,
                               upscale=2).state_dict()}, folder / 'rcan.pth')
    torch.save({'params': SwinIR(**SWINIR).state_dict()}, folder / 'swinir.pth')
    rcan = {'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_group': 1, 'num_block': 1,
            'squeeze_factor': 4, 'upscale': 2}
    for name, network_g in {'rcan': rcan, 'swinir': {'type': 'SwinIR', **SWINIR}}.items():
        with open(OPTIONS / 'demo/test_l1.yml') as file:
            opt = yaml.safe_load(file)
        opt.update(name=f'test_{name}', network_g=network_g, path={'pretrain_network_g': str(folder / f'{name}.pth')},
                   model_type='SwinIRModel' if name == 'swinir' else 'SRModel')
        (folder / f'{name}.yml').write_text(yaml.safe_dump(opt))
    return folder


@pytest.fixture(scope='module')
def results(benchmarks, models, tmp_path_factory):
    inputs = [f'VAR={models}/var.pth', str(models / 'experiments/run/models/net_g_latest.pth'),
              str(models / 'rcan.yml'), f'Swin={models}/swinir.yml']
    entries, _, scale = read_entries(inputs, tmp_path_factory.mktemp('copies'), losses={'VAR': 'EU'})
    selected = find_benchmarks([str(benchmarks / name) for name in ('One', 'Two')], {}, scale)
    return compare(entries, selected, scale, find_sample(None, selected, scale), True)


def test_labels(results):
    assert [result.label for result in results] == [BICUBIC, 'VAR', 'run', 'test_rcan', 'Swin']


def test_scores_are_those_of_the_networks_output(results, benchmarks, models):
    """As from udl-upscale, rounded to 8 bits, and BasicSR's metrics."""
    upscaler = Upscaler(load_network_file(models / 'var.pth'))
    for name, images in results[1].scores.items():
        for image, scores in images.items():
            gt, lq = (cv2.imread(str(benchmarks / name / kind / f'{image}.png')) for kind in ('GTmod2', 'LRbicx2'))
            sr = swap_red_blue(upscaler.upscale(swap_red_blue(lq)).image)
            assert scores['psnr'] == pytest.approx(calculate_psnr(sr, gt, 2, test_y_channel=True), abs=0.01)
            assert scores['ssim'] == pytest.approx(calculate_ssim(sr, gt, 2, test_y_channel=True), abs=1e-3)
    assert results[1].scores == results[2].scores  # step 2 starts from step 1


def test_bicubic_is_matlabs(results, benchmarks):
    gt, lq = (cv2.imread(str(benchmarks / 'One' / kind / 'face.png')) for kind in ('GTmod2', 'LRbicx2'))
    assert results[0].scores['One']['face']['psnr'] == calculate_psnr(imresize(lq, 2), gt, 2, test_y_channel=True)
    assert set(results[0].scores['Two']) == {'odd', 'plain'}


def test_cost(results):
    costs = {result.label: result.cost for result in results}
    assert 'params' not in costs[BICUBIC]
    assert costs['VAR']['params'] == costs['run']['params'] == sum(
        value.numel() for value in EDSR(**TINY).parameters())
    assert costs['VAR']['madds'] == costs['run']['madds'] > 1e9
    assert all(one['time'] > 0 for one in costs.values())
    assert all(one['memory'] > 0 for label, one in costs.items() if label != BICUBIC)


def test_map_quality_is_that_of_the_metrics(results):
    sample = results[1].sample
    assert sample.name == 'face'
    args = sample.sr, sample.gt, sample.log_var, 2
    found = results[1].maps['One']['face']
    assert found.ause == uncertainty_metrics.calculate_map_ause(*args)
    assert found.spearman == uncertainty_metrics.calculate_map_spearman(*args)
    assert found.pearson == uncertainty_metrics.calculate_map_pearson(*args)
    assert found.calibration == uncertainty_metrics.calculate_map_calibration(*args, loss='EU')
    other = results[2].maps['One']['face']
    assert other.calibration == uncertainty_metrics.calculate_map_calibration(*args, loss='ESU')
    assert found.gini == uncertainty_metrics.calculate_map_sparsity(*args)
    assert found.hoyer == uncertainty_metrics.calculate_map_sparsity(*args, measure='hoyer')
    assert set(results[1].maps['Two']) == {'odd', 'plain'}
    assert not results[3].maps


def test_gradient_of_the_sr_image_as_a_map():
    gt = np.zeros((20, 20, 3), np.uint8)
    gt[:, 10:] = 200
    sr = gt.copy()
    sr[:, 9:11] = 100  # wrong only at the edge, where the gradient is
    found = rate_map(sr, gt, None, 2)
    assert found.ause < 0.1
    assert found.pearson > 0.6
    assert np.isnan(found.calibration)


def test_tables(results):
    table = build_table(results)
    assert table[0][1:5] == ['One PSNR-Y (dB)', 'One SSIM-Y', 'Two PSNR-Y (dB)', 'Two SSIM-Y']
    assert table[0][-2] == 'ms (60 x 50)'
    assert len({len(row) for row in table}) == 1
    two = results[3].scores['Two']
    assert table[4][3] == f'{(two["odd"]["psnr"] + two["plain"]["psnr"]) / 2:.3f}'
    by_psnr = [row[0] for row in build_table(results, 'psnr')]
    means = {result.label: np.mean([result.mean(name, 'psnr') for name in ('One', 'Two')]) for result in results}
    assert by_psnr[1:] == sorted(means, key=means.get, reverse=True)
    by_size = build_table(results, 'params')
    assert by_size[1][0] == BICUBIC
    assert [int(row[-4].replace(',', '')) for row in by_size[2:]] == sorted(
        int(row[-4].replace(',', '')) for row in by_size[2:])
    maps = build_map_table(results, 'One')
    assert [row[0] for row in maps] == ['', 'VAR', 'VAR: gradient of the SR image', 'run',
                                        'run: gradient of the SR image']
    ours, theirs = ([side['Two'][image].ause for image in ('odd', 'plain')]
                    for side in (results[1].maps, results[1].gradients))
    assert build_map_table(results, 'Two')[1][-1].startswith(f'{np.mean(ours) - np.mean(theirs):+.3f} [')


def test_tables_of_the_pages_have_a_block_for_each_benchmark(results):
    blocks = build_html_tables(results)
    assert [block.caption for block in blocks] == ['One', 'Two', 'Cost']
    table = build_table(results)
    for number, block in enumerate(blocks[:2]):
        assert block.rows == [['network', 'PSNR-Y (dB)', 'SSIM-Y'],
                              *([row[0], *row[1 + 2 * number:3 + 2 * number]] for row in table[1:])]
        assert block.better == {1: 'higher', 2: 'higher'}
    assert [row[1:] for row in blocks[2].rows] == [row[-4:] for row in table]
    assert set(blocks[2].better.values()) == {'lower'}
    maps = build_html_map_table(results, 'One')
    assert {maps.rows[0][column]: order for column, order in maps.better.items()} == {
        'Spearman': 'higher', 'Pearson': 'higher', 'AUSE': 'lower', 'calibration error': 'lower'}
    images = build_image_tables(results)[1]
    assert images.is_folded
    assert [row[0] for row in images.rows] == ['image', 'odd', 'plain']
    assert images.rows[2][3] == f'{results[1].scores["Two"]["plain"]["psnr"]:.3f}'


def test_loss_and_scale_of_a_map_are_those_of_the_checkpoint(models, tmp_path):
    state_dict = load_network_file(models / 'var.pth').state_dict
    save_checkpoint(tmp_path / 'gauss.pth', {'params': state_dict}, VAR, 'GaussianNLL', 1.5)
    opt = {**yaml.safe_load((models / 'rcan.yml').read_text()), 'network_g': VAR, 'model_type': 'UDLModel',
           'path': {'pretrain_network_g': str(tmp_path / 'gauss.pth')}}
    (tmp_path / 'gauss.yml').write_text(yaml.safe_dump(opt))
    inputs = [f'file={tmp_path}/gauss.pth', f'yml={tmp_path}/gauss.yml', f'none={models}/var.pth',
              f'{models}/experiments/run/models/net_g_latest.pth', f'rcan={models}/rcan.yml']
    entries, _, _ = read_entries(inputs, tmp_path / 'copies', losses={'none': 'EU', 'file': 'GaussianNLL'})
    assert [(one.loss, one.error_scale, one.recorded_loss, one.stage) for one in entries] == [
        ('GaussianNLL', 1.5, 'GaussianNLL', 'step 1'), ('GaussianNLL', 1.5, 'GaussianNLL', 'step 1'),
        ('EU', 1, None, 'step 1'), ('ESU', 1, None, 'step 2'), ('ESU', 1, None, 'plain')]
    assert [one.files for one in entries[:2]] == [
        (f'{tmp_path}/gauss.pth',), (f'{tmp_path}/gauss.yml', f'{tmp_path}/gauss.pth')]
    with pytest.raises(UserError, match="gauss.pth': its map was trained with GaussianNLL, as the file records; --eu"):
        read_entries(inputs[:1], tmp_path / 'copies', losses={'file': 'EU'})


def test_expected_error_and_calibration_use_loss_and_scale(results):
    sample = results[1].sample
    scaled = CompareResult('x', results[1].entry._replace(error_scale=2.0))
    scaled.sample = sample
    np.testing.assert_allclose(results[1].expected_error(), np.exp(sample.log_var.astype(float)).mean(axis=0))  # EU
    np.testing.assert_allclose(scaled.expected_error(), 2 * results[1].expected_error())
    assert results[0].expected_error() is None
    one, other = (rate_map(sample.sr, sample.gt, sample.log_var, 2, 'EU', scale) for scale in (1, 2))
    np.testing.assert_allclose(other.predicted, 2 * one.predicted)
    assert other.calibration == pytest.approx(np.mean(np.abs(one.observed - other.predicted) / other.predicted))
    assert other.ause == one.ause


def contains(picture, crop):
    y, x = np.unravel_index((match := cv2.matchTemplate(picture, crop, cv2.TM_SQDIFF)).argmin(), match.shape)
    return np.array_equal(picture[y:y + len(crop), x:x + crop.shape[1]], crop)


def test_crops(results):
    picture = cv2.imdecode(np.frombuffer(draw_crops(results[:2], [(10, 20, 50, 40)]), np.uint8), cv2.IMREAD_COLOR)
    factor, (x, y, width, height) = 6, (10, 20, 50, 40)  # 40 pixels become at least 240
    for image in (results[0].sample.gt, results[1].sample.sr):
        crop = image[y:y + height, x:x + width].repeat(factor, axis=0).repeat(factor, axis=1)
        assert contains(picture, crop)
    true, expected = absolute_error(results[1].sample.sr, results[1].sample.gt), results[1].expected_error()
    limits = 0, round_limit(absolute_error(results[0].sample.sr, results[0].sample.gt), true, expected)
    for error in (true, expected):  # on one scale
        crop = heat_map(error[y:y + height, x:x + width], limits).repeat(factor, axis=0).repeat(factor, axis=1)
        assert contains(picture, crop)


def test_dB_above_a_crop_is_its_own(results, monkeypatch):
    rows = []
    monkeypatch.setattr(compare_report, 'contact_sheet', lambda tiles: rows.extend(tiles) or np.zeros((1, 1), np.uint8))
    draw_crops(results[:2], [(10, 20, 50, 40)])
    sr, gt = (image[20:60, 10:60] for image in (results[1].sample.sr, results[1].sample.gt))
    psnr = calculate_psnr(sr, gt, 0, test_y_channel=True)
    labels = [label for row in rows for label, _ in row]
    assert f'1: VAR, {psnr:.2f} dB in this crop' in labels
    assert len(set(labels)) == len(labels)


def test_boxes_are_numbered_on_a_filled_background():
    image = np.full((100, 120, 3), 255, np.uint8)
    picture = compare_report._draw_boxes(image, [(10, 20, 60, 60)])
    assert picture.shape == (300, 360, 3)
    corner = picture[60:80, 30:50].reshape(-1, 3)
    assert (corner == compare_report.BOX_COLOR).all(axis=1).mean() > 0.6
    assert (corner == 255).all(axis=1).any(), 'the number'
    assert (picture[90:200, 60:200] == 255).all(), 'the rest of the box is not covered'


def test_boxes_are_where_the_map_is_highest(results):
    first, second = find_boxes(results, 20)
    luma = np.tensordot(np.array([65.738, 129.057, 25.064]), results[1].sample.log_var, 1)

    def level(box):
        x, y, width, height = box
        return luma[y:y + height, x:x + width].mean()

    everywhere = [level((x, y, 20, 20)) for y in range(luma.shape[0] - 19) for x in range(luma.shape[1] - 19)]
    assert level(first) == pytest.approx(max(everywhere))
    assert abs(first[0] - second[0]) >= 20 or abs(first[1] - second[1]) >= 20
    assert find_boxes(results[:1], 20)  # without a map
    assert find_boxes(results, 500)[0] == (0, 0, 100, 100) or find_boxes(results, 500)[0][2] == 100


def test_other_layouts(models, benchmarks, tmp_path):
    """safetensors and the reference implementation's layout give the same scores as our checkpoints."""
    safetensors = pytest.importorskip('safetensors.torch')
    base = load_network_file(models / 'var.pth').base()
    safetensors.save_file({name: value.contiguous() for name, value in base.state_dict.items()},
                          tmp_path / 'base.safetensors')
    torch.save(AuthorsEDSR(channels=8, blocks=2, scale=2).state_dict(), tmp_path / 'reference.pt')
    reference = load_network_file(tmp_path / 'reference.pt')
    save_checkpoint(tmp_path / 'ours.pth', {'params': reference.state_dict}, reference.network_g)
    entries, _, scale = read_entries([f'{name}={tmp_path}/{file}' for name, file in (
        ('a', 'base.safetensors'), ('b', 'reference.pt'), ('c', 'ours.pth'))] + [f'd={models}/var.pth'], tmp_path)
    selected = find_benchmarks([str(benchmarks / 'Two')], {}, scale)
    _, a, b, c, d = compare(entries, selected, scale, find_sample('plain', selected, scale))
    assert a.scores == d.scores
    assert b.scores == c.scores != d.scores


def test_command(models, benchmarks, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = ['--sets', str(benchmarks / 'Two'), '--quiet']
    assert main([f'A={models}/var.pth', f'{models}/rcan.yml', *sets, '--uncertainty', '--image', 'plain', '--box', '3',
                 '4', '20', '16', '--sort', 'psnr', '--out', 'out']) == 0
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'table.md', 'scores.csv', 'crops.png', 'sparsification_Two.png', 'report.html', 'maps.csv', 'compare.html'}
    table = (tmp_path / 'out/table.md').read_text()
    assert 'Maps, Two:' in table
    page = (tmp_path / 'out/report.html').read_text()
    assert 'box 1 at 3,4, 20 x 16' in page
    assert page.count('data:image/png') == 2
    assert 'SHA-256' in page
    images = (tmp_path / 'out/compare.html').read_text()
    assert '<title>plain (Two) at x2</title>' in images
    assert '<caption>Two</caption>' in page
    assert '<caption>Two</caption>' in images
    assert len((tmp_path / 'out/scores.csv').read_text().splitlines()) == 1 + 3 * 2
    maps = list(csv.DictReader((tmp_path / 'out/maps.csv').open()))
    assert [(row['network'], row['image']) for row in maps] == [
        (network, image) for network in ('A', 'A: gradient of the SR image') for image in ('odd', 'plain')]
    assert 0 < float(maps[0]['ause']) < 1
    assert not list(tmp_path.rglob('*.pth'))
    capsys.readouterr()
    assert main([f'{models}/rcan.yml', *sets, '--out', 'out']) == 2
    assert "'out/report.html' already exists; choose another --out or pass --force" in capsys.readouterr().err
    assert (tmp_path / 'out/report.html').read_text() == page

    assert main([f'A={models}/var.pth', *sets, '--tile', '64', '--out', 'tiles']) == 0
    rows, tiled = ([row for row in csv.DictReader((tmp_path / name / 'scores.csv').open()) if row['network'] == 'A']
                   for name in ('out', 'tiles'))
    assert [(row['image'], float(row['psnr'])) for row in tiled] == [
        (row['image'], pytest.approx(float(row['psnr']), abs=1e-3)) for row in rows]

    def refused(*arguments):
        assert main([*sets, '--out', 'bad', *arguments]) == 2
        assert not (tmp_path / 'bad').exists()
        return capsys.readouterr().err

    assert 'val.tile: expected an integer of at least 64' in refused(f'A={models}/var.pth', '--tile', '8')
    assert 'val.tile: model_type: SRModel does not support it' in refused(f'{models}/rcan.yml', '--tile', '64')
    assert "there is no file 'nowhere.pth'" in refused('nowhere.pth')
    assert "'nowhere.yml': No such file" in refused('nowhere.yml')
    assert 'none of the networks has a map' in refused(f'{models}/rcan.yml', '--uncertainty')
    assert "no 'plan' in the benchmarks (did you mean 'plain'?)" in refused(f'{models}/rcan.yml', '--image', 'plan')
    assert 'is not inside odd, which is 58 x 70 pixels' in refused(f'{models}/rcan.yml', '--box', '50', '0', '20', '20')
    assert "the label 'A' is used twice" in refused(f'A={models}/var.pth', f'A={models}/rcan.yml')
    monkeypatch.setattr(comparison_page, 'MAX_BYTES', 1000)
    assert main([f'A={models}/var.pth', *sets, '--out', 'small']) == 0
    assert 'compare.html is not written: a page with these images would have' in capsys.readouterr().err
    assert (tmp_path / 'small/report.html').exists()
    assert not (tmp_path / 'small/compare.html').exists()
    assert "there is no network 'B'" in refused(f'A={models}/var.pth', '--eu', 'B', '--uncertainty')
    assert 'two benchmarks are called Two' in refused(f'A={models}/var.pth', '--sets', str(benchmarks / 'Two'), str(
        benchmarks / 'other/../Two'))
    assert 'rcan.pth' in refused(f'{models}/rcan.pth')  # its network cannot be identified from the weights


def test_benchmarks_of_ymls(models, benchmarks, tmp_path):
    with open(models / 'rcan.yml') as file:
        opt = yaml.safe_load(file)
    opt['datasets']['test'].update(name='Two', dataroot_gt=str(benchmarks / 'Two/GTmod2'),
                                   dataroot_lq=str(benchmarks / 'Two/LRbicx2'))
    (tmp_path / 'one.yml').write_text(yaml.safe_dump(opt))
    _, datasets, scale = read_entries([str(tmp_path / 'one.yml')], tmp_path)
    assert [one['name'] for one in find_benchmarks([], datasets, scale)] == ['Two']
    with pytest.raises(UserError, match='--sets: is missing'):
        find_benchmarks([], {}, 2)
    with pytest.raises(UserError, match="--sets Nowhere.dataroot_gt: there is no folder 'Nowhere/GTmod2'"):
        find_benchmarks(['Nowhere'], {}, 2)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'train': {}}, 'is not the yml of a test.*; for a training, give its checkpoint'),
    ({'path': {'pretrain_network_g': None}}, 'path.pretrain_network_g: is missing; there is no network to test'),
    ({'path': None}, 'path: expected a mapping'), ({'scale': None}, 'scale: is missing'),
    ({'datasets': [1]}, 'datasets: expected a mapping'),
    ({'datasets': {'test': {}}}, 'datasets.test.name: is missing'),
    ({'datasets': {'test_1': {'name': 'x/../../../y', 'type': 'PairedImageDataset'}}},
     r'datasets.test_1.name: expected a plain file name'),
    ({'datasets': {'test_1': {'name': 'x', 'type': 'Nope'}}}, "there is no 'Nope'"),
    ({'network_g': {'type': 'EDSRR'}}, r"network_g.type: there is no 'EDSRR'"),
])
def test_wrong_yml(models, tmp_path, changes, message):
    opt = {**yaml.safe_load((models / 'rcan.yml').read_text()), **changes}
    (tmp_path / 'x.yml').write_text(yaml.safe_dump(opt))
    with pytest.raises(UserError, match=message):
        read_entries([str(tmp_path / 'x.yml')], tmp_path)


def test_binary_yml(tmp_path):
    (tmp_path / 'x.yml').write_bytes(b'name: \xff\xfe')
    with pytest.raises(UserError, match='x.yml.* is not valid YAML'):
        read_entries([str(tmp_path / 'x.yml')], tmp_path)


def test_network_of_one_channel_gets_y(benchmarks, tmp_path):
    grey = {'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 4, 'num_step': 1, 'upscale': 2}
    save_checkpoint(tmp_path / 'grey.pth', {'params': DPDNNVar(**grey).state_dict()}, {'type': 'DPDNNVar', **grey})
    entries, _, scale = read_entries([str(tmp_path / 'grey.pth')], tmp_path / 'copies')
    selected = find_benchmarks([str(benchmarks / 'One')], {}, scale)
    results = compare(entries, selected, scale, find_sample(None, selected, scale), True)
    assert results[1].sample.sr.shape == (100, 120)
    assert results[1].maps['One']['face'].ause > 0
    assert draw_crops(results, find_boxes(results, 32)).startswith(b'\x89PNG')


def test_networks_of_several_scales(models, tmp_path):
    x3 = {**TINY, 'upscale': 3}
    save_checkpoint(tmp_path / 'x3.pth', {'params': EDSRVar(**x3).state_dict()}, {'type': 'EDSRVar', **x3})
    with pytest.raises(UserError, match='var has scale 2, x3 has scale 3; compare networks of one scale'):
        read_entries([f'{models}/var.pth', str(tmp_path / 'x3.pth')], tmp_path)


def test_assumed_options_of_a_checkpoint_are_reported(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(get_root_logger(), 'propagate', True)
    torch.save({'params': EDSR(**TINY).state_dict()}, tmp_path / 'x.pth')
    read_entries([str(tmp_path / 'x.pth')], tmp_path)
    assert "x.pth': it does not record res_scale" in caplog.text


def test_moving_average_of_a_checkpoint_is_reported(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(get_root_logger(), 'propagate', True)
    content = {key: EDSR(**TINY).state_dict() for key in ('params', 'params_ema')}
    save_checkpoint(tmp_path / 'x.pth', content, {'type': 'EDSR', **TINY})
    (entry,), _, _ = read_entries([str(tmp_path / 'x.pth')], tmp_path)
    copy = torch.load(entry.opt['path']['pretrain_network_g'])['params']
    assert all(torch.equal(value, copy[name]) for name, value in content['params_ema'].items())
    assert "x.pth': using params_ema, the moving average; " in caplog.text
