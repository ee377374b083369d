import csv

import cv2
import numpy as np
import pytest
import torch
import yaml
from authors_network import AuthorsEDSR
from basicsr.archs.rcan_arch import RCAN
from basicsr.archs.swinir_arch import SwinIR
from basicsr.metrics import calculate_psnr, calculate_ssim
from conftest import OPTIONS, TINY

from udl_plugin.archs import DPDNNVar, EDSRTwo, EDSRVar
from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.cli.compare import main
from udl_plugin.data.lmdb_io import encode
from udl_plugin.errors import UserError
from udl_plugin.inference.upscaler import Upscaler
from udl_plugin.inference.visualize import swap_red_blue
from udl_plugin.metrics import uncertainty_metrics
from udl_plugin.prepare.datasets import prepare_benchmark
from udl_plugin.prepare.demo_data import validation_photos
from udl_plugin.studies.compare import BICUBIC, compare, find_benchmarks, find_shown, quality_of, read_entries
from udl_plugin.studies.compare_report import draw_crops, find_boxes, map_table_of, table_of
from udl_plugin.utils.atomic_io import atomic_write
from udl_plugin.utils.imresize import imresize

VAR = {'type': 'EDSRVar', **TINY}
SWINIR = {'upscale': 2, 'window_size': 8, 'img_size': 16, 'depths': [2], 'embed_dim': 12, 'num_heads': [2],
          'mlp_ratio': 2, 'upsampler': 'pixelshuffle'}


@pytest.fixture(scope='module')
def benchmarks(tmp_path_factory):
    """Two benchmarks of parts of a photo, one of them of sizes that are no multiples of SwinIR's windows."""
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
    """Checkpoints of several makers."""
    folder = tmp_path_factory.mktemp('models')
    torch.manual_seed(0)
    var, two = EDSRVar(**TINY), EDSRTwo(**TINY)
    with torch.no_grad():
        var.var_conv[-2].weight *= 3  # a map with something in it
    two.load_state_dict(var.state_dict())
    save_checkpoint(folder / 'var.pth', {'params': var.state_dict()}, VAR)
    save_checkpoint(folder / 'experiments/run/models/net_g_latest.pth', {'params': two.state_dict()},
                     {'type': 'EDSRTwo', **TINY})
    torch.save({'params': RCAN(num_in_ch=3, num_out_ch=3, num_feat=8, num_group=1, num_block=1, squeeze_factor=4,
                               upscale=2).state_dict()}, folder / 'rcan.pth')
    torch.save({'params': SwinIR(**SWINIR).state_dict()}, folder / 'swinir.pth')
    rcan = {'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_group': 1, 'num_block': 1,
            'squeeze_factor': 4, 'upscale': 2}
    for name, section in {'rcan': rcan, 'swinir': {'type': 'SwinIR', **SWINIR}}.items():
        with open(OPTIONS / 'demo/test_l1.yml') as file:
            opt = yaml.safe_load(file)
        opt.update(name=f'test_{name}', network_g=section, path={'pretrain_network_g': str(folder / f'{name}.pth')},
                   model_type='SwinIRModel' if name == 'swinir' else 'SRModel')
        (folder / f'{name}.yml').write_text(yaml.safe_dump(opt))
    return folder


@pytest.fixture(scope='module')
def results(benchmarks, models, tmp_path_factory):
    inputs = [f'VAR={models}/var.pth', str(models / 'experiments/run/models/net_g_latest.pth'),
              str(models / 'rcan.yml'), f'Swin={models}/swinir.yml']
    entries, _, scale = read_entries(inputs, tmp_path_factory.mktemp('copies'))
    sections = find_benchmarks([str(benchmarks / name) for name in ('One', 'Two')], {}, scale)
    return compare(entries, sections, scale, find_shown(None, sections, scale), True, {'VAR': 'EU'})


def test_labels(results):
    assert [result.label for result in results] == [BICUBIC, 'VAR', 'run', 'test_rcan', 'Swin']


def test_scores_are_those_of_the_image_that_the_network_makes(results, benchmarks, models):
    """The same as udl-upscale makes, rounded to 8 bits, rated by upstream's metrics."""
    upscaler = Upscaler(load_network_file(models / 'var.pth'))
    for name, images in results[1].scores.items():
        for image, scores in images.items():
            gt, lq = (cv2.imread(str(benchmarks / name / kind / f'{image}.png')) for kind in ('GTmod2', 'LRbicx2'))
            sr = swap_red_blue(upscaler.upscale(swap_red_blue(lq)).image)
            assert scores.psnr == pytest.approx(calculate_psnr(sr, gt, 2, test_y_channel=True), abs=0.01)
            assert scores.ssim == pytest.approx(calculate_ssim(sr, gt, 2, test_y_channel=True), abs=1e-3)
    assert results[1].scores == results[2].scores  # step 2 from step 1, not trained yet


def test_bicubic_is_matlabs(results, benchmarks):
    gt, lq = (cv2.imread(str(benchmarks / 'One' / kind / 'face.png')) for kind in ('GTmod2', 'LRbicx2'))
    assert results[0].scores['One']['face'].psnr == calculate_psnr(imresize(lq, 2), gt, 2, test_y_channel=True)
    assert set(results[0].scores['Two']) == {'odd', 'plain'}


def test_cost(results):
    costs = {result.label: result.cost for result in results}
    assert 'params' not in costs[BICUBIC]
    assert costs['VAR']['params'] == costs['run']['params'] == sum(
        value.numel() for value in read_model_plain().parameters())
    assert costs['VAR']['madds'] == costs['run']['madds'] > 1e9
    assert all(cost['time'] > 0 for cost in costs.values())
    assert all(cost['memory'] is not None for label, cost in costs.items() if label != BICUBIC)


def read_model_plain():
    from basicsr.archs.edsr_arch import EDSR
    return EDSR(**TINY)


def test_map_is_rated_as_the_metrics_rate_it(results):
    shown = results[1].shown
    assert shown.name == 'face'
    args = shown.sr, shown.gt, shown.log_var, 2
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


def test_gradient_of_the_sr_image_in_the_maps_place():
    gt = np.zeros((20, 20, 3), np.uint8)
    gt[:, 10:] = 200
    sr = gt.copy()
    sr[:, 9:11] = 100  # errs at the edge alone, where its gradient is
    found = quality_of(sr, gt, None, 2)
    assert found.ause < 0.1
    assert found.pearson > 0.6
    assert np.isnan(found.calibration)


def test_tables(results):
    table = table_of(results)
    assert table[0][1:5] == ['One PSNR-Y (dB)', 'One SSIM-Y', 'Two PSNR-Y (dB)', 'Two SSIM-Y']
    assert table[0][-2] == 'ms (60 x 50)'
    assert len({len(row) for row in table}) == 1
    two = results[3].scores['Two']
    assert table[4][3] == f'{(two["odd"].psnr + two["plain"].psnr) / 2:.2f}'
    by_psnr = [row[0] for row in table_of(results, 'psnr')]
    means = {result.label: np.mean([result.mean(name, 0) for name in ('One', 'Two')]) for result in results}
    assert by_psnr[1:] == sorted(means, key=means.get, reverse=True)
    by_size = table_of(results, 'params')
    assert by_size[1][0] == BICUBIC
    assert [int(row[-4].replace(',', '')) for row in by_size[2:]] == sorted(
        int(row[-4].replace(',', '')) for row in by_size[2:])
    maps = map_table_of(results, 'One')
    assert [row[0] for row in maps] == ['', 'VAR', 'VAR: gradient of the SR image', 'run',
                                        'run: gradient of the SR image']
    ours, theirs = ([side['Two'][image].ause for image in ('odd', 'plain')]
                    for side in (results[1].maps, results[1].gradients))
    assert map_table_of(results, 'Two')[1][-1].startswith(f'{np.mean(ours) - np.mean(theirs):+.3f} [')


def test_boxes_are_where_the_map_is_highest(results):
    first, second = find_boxes(results, 20)
    luma = np.tensordot(np.array([65.738, 129.057, 25.064]), results[1].shown.log_var, 1)

    def level(box):
        x, y, width, height = box
        return luma[y:y + height, x:x + width].mean()

    everywhere = [level((x, y, 20, 20)) for y in range(luma.shape[0] - 19) for x in range(luma.shape[1] - 19)]
    assert level(first) == pytest.approx(max(everywhere))
    assert abs(first[0] - second[0]) >= 20 or abs(first[1] - second[1]) >= 20
    assert find_boxes(results[:1], 20)  # without a map
    assert find_boxes(results, 500)[0] == (0, 0, 100, 100) or find_boxes(results, 500)[0][2] == 100


def test_other_layouts(models, benchmarks, tmp_path):
    """The authors' file and safetensors give what the same network of ours gives."""
    safetensors = pytest.importorskip('safetensors.torch')
    model = load_network_file(models / 'var.pth')
    plain = model.plain()
    tensors = {name: value.contiguous() for name, value in plain.state_dict.items()}
    safetensors.save_file(tensors, tmp_path / 'plain.safetensors')
    torch.save(AuthorsEDSR(channels=8, blocks=2, scale=2).state_dict(), tmp_path / 'authors.pt')
    authors = load_network_file(tmp_path / 'authors.pt')
    save_checkpoint(tmp_path / 'ours.pth', {'params': authors.state_dict}, authors.network_g)
    entries, _, scale = read_entries([f'{name}={tmp_path}/{file}' for name, file in (
        ('a', 'plain.safetensors'), ('b', 'authors.pt'), ('c', 'ours.pth'))] + [f'd={models}/var.pth'], tmp_path)
    sections = find_benchmarks([str(benchmarks / 'Two')], {}, scale)
    _, a, b, c, d = compare(entries, sections, scale, find_shown('plain', sections, scale))
    assert a.scores == d.scores
    assert b.scores == c.scores != d.scores


def test_command(models, benchmarks, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = ['--sets', str(benchmarks / 'Two'), '--quiet']
    assert main([f'A={models}/var.pth', f'{models}/rcan.yml', *sets, '--uncertainty', '--image', 'plain', '--box', '3',
                 '4', '20', '16', '--sort', 'psnr', '--out', 'out']) == 0
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'table.md', 'scores.csv', 'crops.png', 'sparsification_Two.png', 'report.html', 'maps.csv'}
    table = (tmp_path / 'out/table.md').read_text()
    assert 'Maps, Two:' in table
    page = (tmp_path / 'out/report.html').read_text()
    assert 'box 1 at 3,4, 20 x 16' in page
    assert page.count('data:image/png') == 2
    assert len((tmp_path / 'out/scores.csv').read_text().splitlines()) == 1 + 3 * 2
    maps = list(csv.DictReader((tmp_path / 'out/maps.csv').open()))
    assert [(row['network'], row['image']) for row in maps] == [
        (network, image) for network in ('A', 'A: gradient of the SR image') for image in ('odd', 'plain')]
    assert 0 < float(maps[0]['ause']) < 1
    assert not list(tmp_path.rglob('*.pth'))
    capsys.readouterr()
    assert main([f'{models}/rcan.yml', *sets, '--out', 'out']) == 2
    assert "'out/report.html' exists already; choose another --out or give --force" in capsys.readouterr().err
    assert (tmp_path / 'out/report.html').read_text() == page

    def refused(*arguments):
        assert main([*sets, '--out', 'bad', *arguments]) == 2
        assert not (tmp_path / 'bad').exists()
        return capsys.readouterr().err

    assert "there is no file 'nowhere.pth'" in refused('nowhere.pth')
    assert "'nowhere.yml': No such file" in refused('nowhere.yml')
    assert 'none of the networks has a map' in refused(f'{models}/rcan.yml', '--uncertainty')
    assert "no 'plan' in the benchmarks (did you mean 'plain'?)" in refused(f'{models}/rcan.yml', '--image', 'plan')
    assert 'is not inside odd, 58 x 70' in refused(f'{models}/rcan.yml', '--box', '50', '0', '20', '20')
    assert "the label 'A' is taken" in refused(f'A={models}/var.pth', f'A={models}/rcan.yml')
    assert "there is no network 'B'" in refused(f'A={models}/var.pth', '--eu', 'B', '--uncertainty')
    assert 'two benchmarks are called Two' in refused(f'A={models}/var.pth', '--sets', str(benchmarks / 'Two'), str(
        benchmarks / 'other/../Two'))
    assert 'rcan.pth' in refused(f'{models}/rcan.pth')  # of a kind that weights do not tell


def test_benchmarks_of_ymls(models, benchmarks, tmp_path):
    with open(models / 'rcan.yml') as file:
        opt = yaml.safe_load(file)
    opt['datasets']['test'].update(name='Two', dataroot_gt=str(benchmarks / 'Two/GTmod2'),
                                   dataroot_lq=str(benchmarks / 'Two/LRbicx2'))
    (tmp_path / 'one.yml').write_text(yaml.safe_dump(opt))
    _, datasets, scale = read_entries([str(tmp_path / 'one.yml')], tmp_path)
    assert [section['name'] for section in find_benchmarks([], datasets, scale)] == ['Two']
    opt['datasets']['test']['dataroot_lq'] = 'elsewhere'
    opt['name'] = 'other'
    (tmp_path / 'two.yml').write_text(yaml.safe_dump(opt))
    with pytest.raises(UserError, match='its data set Two is another than that of a yml before it'):
        read_entries([str(tmp_path / 'one.yml'), str(tmp_path / 'two.yml')], tmp_path)
    with pytest.raises(UserError, match='--sets: is missing'):
        find_benchmarks([], {}, 2)
    with pytest.raises(UserError, match="--sets: Nowhere: dataroot_gt: there is no folder 'Nowhere/GTmod2'"):
        find_benchmarks(['Nowhere'], {}, 2)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'train': {}}, 'is not the yml of a test.*; of a training, name the checkpoint'),
    ({'path': {'pretrain_network_g': None}}, 'path: pretrain_network_g: is missing: there is nothing to test'),
    ({'path': None}, 'path: is missing'), ({'scale': None}, 'scale: is missing'),
    ({'datasets': [1]}, 'datasets: holds sections, each with a name'),
    ({'datasets': {'test': {}}}, 'datasets: test: name: is missing'),
    ({'datasets': {'test_1': {'name': 'x/../../../y', 'type': 'PairedImageDataset'}}}, 'test_1: name: .* a plain name'),
    ({'datasets': {'test_1': {'name': 'x', 'type': 'Nope'}}}, "there is no 'Nope'"),
    ({'network_g': {'type': 'EDSRR'}}, "network_g: type: there is no 'EDSRR'"),
])
def test_bad_yml(models, tmp_path, changes, message):
    opt = {**yaml.safe_load((models / 'rcan.yml').read_text()), **changes}
    (tmp_path / 'x.yml').write_text(yaml.safe_dump(opt))
    with pytest.raises(UserError, match=message):
        read_entries([str(tmp_path / 'x.yml')], tmp_path)


def test_file_that_is_no_text(tmp_path):
    (tmp_path / 'x.yml').write_bytes(b'name: \xff\xfe')
    with pytest.raises(UserError, match='is no yml'):
        read_entries([str(tmp_path / 'x.yml')], tmp_path)


def test_network_of_one_channel_is_given_y(benchmarks, tmp_path):
    grey = {'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 4, 'num_step': 1, 'upscale': 2}
    save_checkpoint(tmp_path / 'grey.pth', {'params': DPDNNVar(**grey).state_dict()}, {'type': 'DPDNNVar', **grey})
    entries, _, scale = read_entries([str(tmp_path / 'grey.pth')], tmp_path / 'copies')
    sections = find_benchmarks([str(benchmarks / 'One')], {}, scale)
    results = compare(entries, sections, scale, find_shown(None, sections, scale), True)
    assert results[1].shown.sr.shape == (100, 120)
    assert results[1].maps['One']['face'].ause > 0
    assert draw_crops(results, find_boxes(results, 32), scale).startswith(b'\x89PNG')


def test_scales_do_not_mix(models, tmp_path):
    x3 = {**TINY, 'upscale': 3}
    save_checkpoint(tmp_path / 'x3.pth', {'params': EDSRVar(**x3).state_dict()}, {'type': 'EDSRVar', **x3})
    with pytest.raises(UserError, match='of scale 2 and .*x3.pth.* of scale 3; compare one scale at a time'):
        read_entries([f'{models}/var.pth', str(tmp_path / 'x3.pth')], tmp_path)
