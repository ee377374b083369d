"""The shipped option files build and belong together."""
import importlib.util
import re
import sys

import pytest
import torch
import yaml
from basicsr.models import build_model
from basicsr.utils.options import parse_options
from conftest import OPTIONS, ROOT

from udl_plugin.archs.build import build_network
from udl_plugin.archs.wrapping import base_config, wrapped_config

YMLS = sorted(path for path in OPTIONS.rglob('*.yml') if path.parent.name != 'studies')


def parse(path, monkeypatch, root):
    """As from the command line of BasicSR."""
    monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', str(path)])
    return parse_options(str(root), is_train=path.name.startswith('train'))[0]


@pytest.mark.parametrize('path', YMLS, ids=lambda path: str(path.relative_to(OPTIONS)))
def test_shipped_file_builds(path, monkeypatch, tmp_path):
    opt = parse(path, monkeypatch, tmp_path)
    opt['num_gpu'] = 0
    opt['datasets'] = {}  # not on this machine
    if path.parent != OPTIONS:  # those have the network of most others in full
        base = opt['network_g'].get('backbone', opt['network_g'])
        small = {'num_feat': 8, 'num_block': 2, 'num_group': 1, 'num_step': 1, 'squeeze_factor': 4}
        base.update({key: value for key, value in small.items() if key in base})
    if opt['path']['pretrain_network_g'] is not None:
        plain = base_config(opt['network_g'])
        start = build_network(plain if opt['network_g'] == plain else wrapped_config('step 1', plain))
        torch.save({'params': start.state_dict()}, tmp_path / 'before.pth')
        opt['path']['pretrain_network_g'] = str(tmp_path / 'before.pth')
    model = build_model(opt)
    scale = opt['scale']
    with torch.no_grad():
        assert model.net_g(torch.rand(1, 3, 6, 6)).shape == (1, 3, 6 * scale, 6 * scale)
    if opt['is_train']:
        assert type(model.cri_pix).__name__ == opt['train']['pixel_opt']['type']
        assert opt['train']['total_iter'] > 0
    for metric in opt.get('val', {}).get('metrics', {}).values():  # EDSR-XS has no validation set
        assert metric['crop_border'] == scale
        assert metric['test_y_channel'] is True


def flat(path):
    def walk(section, prefix=''):
        for key, value in section.items():
            if isinstance(value, dict):
                yield from walk(value, f'{prefix}{key}.')
            else:
                yield f'{prefix}{key}', value
    return dict(walk(yaml.safe_load(path.read_text())))


def differences(one, other):
    one, other = flat(OPTIONS / one), flat(OPTIONS / other)
    return {key for key in one.keys() | other.keys() if one.get(key, ...) != other.get(key, ...)}


def test_demo_trainings_differ_only_in_what_must():
    method = {'name', 'model_type', 'network_g.type', 'train.pixel_opt.type'}
    step = {'name', 'path.pretrain_network_g', 'train.optim_g.lr'}
    assert differences('demo/train_l1_step1.yml', 'demo/train_udl_step1.yml') == method
    assert differences('demo/train_l1_step2.yml', 'demo/train_udl_step2.yml') == method | {'path.pretrain_network_g'}
    assert differences('demo/train_l1_step1.yml', 'demo/train_l1_step2.yml') == step


def test_the_two_steps_differ_only_in_what_must():
    assert differences('train_udl_step1.yml', 'train_udl_step2.yml') == {
        'name', 'network_g.type', 'path.pretrain_network_g', 'train.scheduler.milestones', 'train.total_iter',
        'train.pixel_opt.type', 'train.pixel_opt.offset'}


FAMILY = [(network, scale) for network in ('EDSR_S', 'EDSR', 'DPDNN') for scale in (2, 3, 4)]
SCALED = {'name', 'scale', 'network_g.upscale', 'datasets.train.gt_size', 'datasets.train.dataroot_lq',
          'path.pretrain_network_g', 'val.metrics.psnr.crop_border', 'val.metrics.ssim.crop_border'}


def member(network, scale, kind):
    phase = 'test' if kind.startswith('test') else 'train'
    return f'{phase}/{network}/{phase}_{network}_x{scale}_{kind.replace("test_", "")}.yml'


@pytest.mark.parametrize(('network', 'scale'), FAMILY)
def test_family(network, scale):
    """Files of one network differ only in what must differ: between scales, and between the kinds of one scale."""
    for kind in ('udl_step1', 'udl_step2', 'udl_one_run', 'l1', 'test_udl', 'test_udl_one_run', 'test_l1'):
        other = 2 if scale == 4 else 4
        changed = differences(member(network, scale, kind), member(network, other, kind))
        roots = {key for key in changed if re.fullmatch(r'datasets\.(val|test)\w*\.dataroot_(gt|lq)', key)}
        assert changed - roots <= SCALED
        assert len(roots) == 8
        options = flat(OPTIONS / member(network, scale, kind))
        assert {options[key] for key in options if key.endswith('crop_border')} == {scale}
        assert options['scale'] == options['network_g.upscale'] == scale
        assert options.get('datasets.train.gt_size', 48 * scale) == 48 * scale
        assert {options[key][-len(f'mod{scale}'):] for key in roots} == {f'mod{scale}', f'icx{scale}'}
        assert options.get('datasets.train.dataroot_lq', f'X{scale}').count(f'X{scale}') == 1

    step1, step2, l1, one_run = (member(network, scale, kind) for kind in ('udl_step1', 'udl_step2', 'l1',
                                                                           'udl_one_run'))
    schedule = {'name', 'network_g.type', 'train.scheduler.milestones', 'train.total_iter', 'train.pixel_opt.type'}
    assert differences(step1, step2) == \
        {*schedule, 'path.pretrain_network_g', 'train.pixel_opt.offset'}
    assert differences(step1, one_run) == {*schedule, 'network_g.detach_features', 'train.pixel_opt.offset',
                                           'train.pixel_opt.warmup'} - {'network_g.type'}
    assert differences(step1, l1) == {*schedule, 'train.pixel_opt.img_range', 'val.save_uncertainty'}
    assert differences(*(member(network, scale, kind) for kind in ('test_udl', 'test_l1'))) == \
        {'name', 'network_g.type', 'path.pretrain_network_g', 'val.save_uncertainty'}
    step1, step2, l1, one_run = (flat(OPTIONS / file) for file in (step1, step2, l1, one_run))
    both = step1['train.total_iter'] + step2['train.total_iter']
    assert l1['train.total_iter'] == one_run['train.total_iter'] == both
    assert step2['path.pretrain_network_g'] == f'experiments/{step1["name"]}/models/net_g_latest.pth'
    for kind, trained in (('test_udl', step2), ('test_udl_one_run', one_run), ('test_l1', l1)):
        tested = flat(OPTIONS / member(network, scale, kind))
        assert tested['path.pretrain_network_g'] == f'experiments/{trained["name"]}/models/net_g_latest.pth'
        assert tested['network_g.type'] == trained['network_g.type']


def test_networks_of_the_family_differ_only_in_the_network():
    for kind in ('udl_step1', 'udl_step2', 'udl_one_run', 'l1', 'test_udl', 'test_udl_one_run', 'test_l1'):
        for network in ('EDSR', 'DPDNN'):
            changed = differences(member('EDSR_S', 4, kind), member(network, 4, kind))
            assert {key for key in changed if not key.startswith('network_g.')} <= {'name', 'path.pretrain_network_g'}


def test_family_has_the_canonical_files():
    for canonical, kind in (('train_udl_step1', 'udl_step1'), ('train_udl_step2', 'udl_step2'),
                            ('train_udl_one_run', 'udl_one_run'), ('test_udl', 'test_udl')):
        assert differences(f'{canonical}.yml', member('EDSR_S', 4, kind)) <= {'name', 'path.pretrain_network_g'}


def test_family_is_what_the_script_writes():
    spec = importlib.util.spec_from_file_location('make_options', ROOT / 'scripts' / 'make_options.py')
    make_options = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_options)
    made = dict(make_options.families())
    assert {OPTIONS / 'train_udl_one_run.yml', *OPTIONS.glob('train/**/*.yml'), *OPTIONS.glob('test/**/*.yml')} == \
        {*made, OPTIONS / 'train/EDSR_XS/train_EDSR_XS_x4.yml'}  # of which x2 and x3 are made
    for path, text in made.items():
        assert path.read_text() == text, f'{path}: run python scripts/make_options.py'


def test_names_of_experiments_are_unique():
    names = [flat(path)['name'] for path in YMLS]
    assert len(names) == len(set(names))


def test_canonical_schedule_is_the_authors():
    step1, step2 = (flat(OPTIONS / f'train_udl_step{step}.yml') for step in (1, 2))
    for options, total in ((step1, 30000), (step2, 100000)):
        assert options['train.total_iter'] == total
        assert options['train.scheduler.milestones'] == [total // 2]
        assert options['train.scheduler.gamma'] == 0.5
        assert options['train.optim_g.lr'] == 1e-4
        assert options['train.optim_g.betas'] == [0.9, 0.999]
        assert options['datasets.train.batch_size_per_gpu'] == 64
        assert options['datasets.train.gt_size'] == 4 * 48
        assert options['network_g.res_scale'] == 0.1
        assert options['network_g.rgb_mean'] == [0, 0, 0]
    assert step2['path.pretrain_network_g'] == f'experiments/{step1["name"]}/models/net_g_latest.pth'
