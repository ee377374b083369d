"""The shipped option files build and belong together; options that disagree are reported."""
import importlib.util
import re
import sys

import pytest
import torch
import yaml
from basicsr.models import build_model
from basicsr.utils.options import parse_options
from conftest import OPTIONS, ROOT, TINY, random_images, write_images

from udl_plugin.archs import EDSRVar
from udl_plugin.archs.build import build_network
from udl_plugin.archs.wrapping import base_config, wrapped_config
from udl_plugin.checkpoints.state_dict import fingerprint
from udl_plugin.config.cross_checks import (
    check_data,
    check_map_fingerprint,
    check_network,
    check_options,
    checks_done,
    network_errors,
    validate_options,
)
from udl_plugin.config.dataset_checks import Pairs
from udl_plugin.data.map_format import METADATA, make_metadata
from udl_plugin.errors import UserErrors
from udl_plugin.utils.atomic_io import atomic_write

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
    for metric in opt['val']['metrics'].values():
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
        'name', 'network_g.type', 'path.pretrain_network_g', 'path.param_key_g', 'train.scheduler.milestones',
        'train.total_iter', 'train.pixel_opt.type', 'train.pixel_opt.offset'}


FAMILY = [(network, scale) for network in ('EDSR_S', 'EDSR', 'DPDNN') for scale in (2, 3, 4)]
SCALED = {'name', 'scale', 'network_g.upscale', 'datasets.train.gt_size', 'datasets.train.dataroot_lq',
          'path.pretrain_network_g', 'val.metrics.psnr.crop_border', 'val.metrics.ssim.crop_border'}


def member(network, scale, kind):
    phase = 'test' if kind.startswith('test') else 'train'
    return f'{phase}/{network}/{phase}_{network}_x{scale}_{kind.replace("test_", "")}.yml'


@pytest.mark.parametrize(('network', 'scale'), FAMILY)
def test_family(network, scale):
    """Files of one network differ only in what must differ: between scales, and between the kinds of one scale."""
    for kind in ('udl_step1', 'udl_step2', 'l1', 'test_udl', 'test_l1'):
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

    step1, step2, l1 = (member(network, scale, kind) for kind in ('udl_step1', 'udl_step2', 'l1'))
    schedule = {'name', 'network_g.type', 'train.scheduler.milestones', 'train.total_iter', 'train.pixel_opt.type'}
    assert differences(step1, step2) == \
        {*schedule, 'path.pretrain_network_g', 'path.param_key_g', 'train.pixel_opt.offset'}
    assert differences(step1, l1) == {*schedule, 'train.pixel_opt.img_range', 'val.save_uncertainty'}
    assert differences(*(member(network, scale, kind) for kind in ('test_udl', 'test_l1'))) == \
        {'name', 'network_g.type', 'path.pretrain_network_g', 'val.save_uncertainty'}
    step1, step2, l1 = (flat(OPTIONS / file) for file in (step1, step2, l1))
    assert l1['train.total_iter'] == step1['train.total_iter'] + step2['train.total_iter']
    assert step2['path.pretrain_network_g'] == f'experiments/{step1["name"]}/models/net_g_latest.pth'
    for kind, trained in (('test_udl', step2), ('test_l1', l1)):
        tested = flat(OPTIONS / member(network, scale, kind))
        assert tested['path.pretrain_network_g'] == f'experiments/{trained["name"]}/models/net_g_latest.pth'
        assert tested['network_g.type'] == trained['network_g.type']


def test_networks_of_the_family_differ_only_in_the_network():
    for kind in ('udl_step1', 'udl_step2', 'l1', 'test_udl', 'test_l1'):
        for network in ('EDSR', 'DPDNN'):
            changed = differences(member('EDSR_S', 4, kind), member(network, 4, kind))
            assert {key for key in changed if not key.startswith('network_g.')} <= {'name', 'path.pretrain_network_g'}


def test_family_has_the_canonical_files():
    for canonical, kind in (('train_udl_step1', 'udl_step1'), ('train_udl_step2', 'udl_step2'),
                            ('test_udl', 'test_udl')):
        assert differences(f'{canonical}.yml', member('EDSR_S', 4, kind)) <= {'name', 'path.pretrain_network_g'}


def test_family_is_what_the_script_writes():
    spec = importlib.util.spec_from_file_location('make_options', ROOT / 'scripts' / 'make_options.py')
    make_options = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_options)
    made = dict(make_options.families())
    assert {*OPTIONS.glob('train/**/*.yml'), *OPTIONS.glob('test/**/*.yml')} == made.keys()
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


# ---- options that disagree


def minimal(**changes):
    return {'model_type': 'UDLModel', 'is_train': True, 'scale': 2, 'datasets': {}, 'val': None, 'path': {},
            'network_g': {'type': 'EDSRVar', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 2}, **changes}


def assert_accepted(**changes):
    assert validate_options(minimal(**changes)) == []
    check_options(minimal(**changes))


def assert_error(key, message, found):
    """One error at a dotted key, whose message matches a pattern."""
    assert [error.path for error in found] == [tuple(key.split('.'))], found
    assert re.search(message, found[0].message), found


def assert_refused(key, message, **changes):
    assert_error(key, message, validate_options(minimal(**changes)))
    with pytest.raises(UserErrors) as caught:
        check_options(minimal(**changes))
    assert caught.value.errors == validate_options(minimal(**changes))
    with checks_done():
        check_options(minimal(**changes))


def test_checks_done_ends_with_its_block():
    with checks_done(), checks_done():
        check_options({})
    with pytest.raises(UserErrors):
        check_options({})


def test_network_check_draws_no_random_numbers(tmp_path):
    opt = minimal(network_g={'type': 'EDSRVar', **TINY}, path={'pretrain_network_g': str(tmp_path / 'x.pth')})
    torch.save({'params': EDSRVar(**TINY).state_dict()}, tmp_path / 'x.pth')
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    check_network(opt)
    assert torch.equal(torch.rand(1), expected)
    assert network_errors(opt) == []
    opt['network_g']['num_feat'] = 16
    assert_error('path.pretrain_network_g', r'x\.pth.*num_feat: 8 \(network_g: 16\)', network_errors(opt))


@pytest.mark.parametrize(('network', 'message'), [
    ({'type': 'WithVariance', 'backbone': {'type': 'EDSR', **TINY}, 'features': 'upsampel'},
     "there is no 'upsampel' .did you mean 'upsample'"),
    ({'type': 'EDSR', **TINY, 'num_feat': -8}, 'type: EDSR: cannot be built'),
    ({'type': 'DPDNN', **TINY}, "'num_block' is not an option of type: DPDNN")])
def test_network_that_cannot_be_built(network, message):
    opt = minimal(network_g=network)
    assert_error('network_g', message, network_errors(opt))
    with pytest.raises(UserErrors) as caught:
        check_network(opt)
    assert caught.value.errors == network_errors(opt)


def test_network_errors_leave_out_what_is_known():
    opt = minimal(network_g={'type': 'EDSR', **TINY, 'num_feat': -8}, path={'pretrain_network_g': 'nowhere.pth'})
    found = network_errors(opt)
    assert [error.path for error in found] == [('network_g',)]
    missing = validate_options(opt, [])
    assert_error('path.pretrain_network_g', "there is no file 'nowhere.pth'", missing)
    assert network_errors(opt, missing) == []  # the network is not built either, for it could not be matched
    assert network_errors(opt, found) == []


def test_option_that_a_network_accepts_silently():
    """SwinIR takes any keyword."""
    swinir = {'type': 'SwinIR', 'embed_dims': 24, 'upscale': 2}
    assert_refused('network_g.backbone.embed_dims', "is not an option of type: SwinIR .*'embed_dim'",
                   network_g={'type': 'WithVariance', 'backbone': swinir})


def test_loss_that_srmodel_cannot_feed():
    assert_refused('model_type', 'SRModel does not pass log_var to losses, which train.pixel_opt: ESU requires',
                   model_type='SRModel', train={'pixel_opt': {'type': 'ESU'}})


TWO = {'type': 'EDSRTwo', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 2}


@pytest.mark.parametrize(('loss', 'network', 'message'), [
    ({'source': 'error'}, 'EDSR', 'UDL requires frozen_sr, which network_g: EDSR does not provide; EDSRTwo, DPDNNTwo'),
    ({'source': 'log_var'}, 'EDSR', 'UDL requires log_var, which network_g: EDSR does not provide'),
    ({'source': 'log_var'}, 'EDSRVar', 'UDL weights by a trained log-variance, and that of network_g: EDSRVar would'),
    ({'source': 'nothing'}, 'EDSRTwo', "source.*'nothing'"),
    ({'scaling': 'exp', 'source': 'error'}, 'EDSRTwo', 'scaling: exp (is for|requires)'),
])
def test_source_that_the_network_does_not_provide(loss, network, message):
    assert_refused('train.pixel_opt', message, train={'pixel_opt': {'type': 'UDL', **loss}},
                   network_g={**TWO, 'type': network}, path={'pretrain_network_g': 'x.pth'})


def test_loss_of_the_other_step():
    assert_refused('train.pixel_opt', 'ESU trains the log-variance, which is frozen in network_g: EDSRTwo',
                   train={'pixel_opt': {'type': 'ESU'}}, network_g=TWO, path={'pretrain_network_g': 'x.pth'})
    assert_refused('train.pixel_opt', 'requires frozen_sr', train={'pixel_opt': {'type': 'UDL', 'source': 'error'}})


@pytest.mark.parametrize('network', ['EDSR', 'EDSRVar', 'EDSRTwo'])
@pytest.mark.parametrize('model_type', ['UDLModel', 'SRModel'])
def test_gradient_of_the_ground_truth_requires_no_network(network, model_type):
    assert_accepted(train={'pixel_opt': {'type': 'UDL', 'source': 'gradient'}}, network_g={**TWO, 'type': network},
                    model_type=model_type, path={'pretrain_network_g': __file__})


def test_missing_checkpoint():
    assert_refused('path.pretrain_network_g', 'is missing. EDSRTwo starts from a checkpoint of step 1', network_g=TWO)
    assert_refused('path.pretrain_network_g', 'is missing: there is nothing to test', is_train=False)
    assert_refused('path.pretrain_network_g', "there is no file 'nowhere.pth'", model_type='SRModel',
                   path={'pretrain_network_g': 'nowhere.pth'})
    assert_accepted(path={'pretrain_network_g': 'nowhere.pth'})  # UDLModel reads it


@pytest.mark.parametrize(('metric', 'network', 'key', 'message'), [
    ({'type': 'calculate_map_aus', 'crop_border': 2}, 'EDSRVar', 'm.type', "did you mean 'calculate_map_ause'"),
    ({'type': 'calculate_map_ause', 'crop_boarder': 2, 'crop_border': 2}, 'EDSRVar', 'm.crop_boarder', 'is not an opt'),
    ({'type': 'calculate_map_ause'}, 'EDSRVar', 'm.crop_border', 'is missing; write the scale'),
    ({'type': 'calculate_map_ause', 'crop_border': 2}, 'EDSR', 'm', 'calculate_map_ause requires log_var, which netwo'),
])
def test_metric(metric, network, key, message):
    good = {'type': 'calculate_map_ause', 'crop_border': 2, 'better': 'lower'}
    assert_accepted(val={'metrics': {'m': good, 'psnr': {'type': 'calculate_psnr', 'crop_border': 2}}})
    assert_refused(f'val.metrics.{key}', message, val={'metrics': {'m': metric}}, network_g={**TWO, 'type': network})




PERCEPTUAL = {'type': 'PerceptualLoss', 'layer_weights': {}, 'criterion': 'fro'}


@pytest.mark.parametrize(('key', 'message', 'changes'), [
    ('train.accumulate', '3: .* write a divisor of batch_size_per_gpu: 8', {'train': {'accumulate': 3}}),
    ('train.accumulate', 'the parts are averaged, and pixel_opt.reduction: sum', {
        'train': {'accumulate': 2, 'pixel_opt': {'type': 'ESU', 'reduction': 'sum'}}}),
    ('train.accumulate', 'the parts are averaged, and perceptual_opt.criterion: fro', {
        'train': {'accumulate': 2, 'perceptual_opt': PERCEPTUAL}}),
    ('train.amp', 'bf16 on 2 GPUs requires .*torchrun --nproc_per_node=2 -m ', {
        'num_gpu': 2, 'train': {'amp': 'bf16'}}),
    ('train.compile', 'True on 2 GPUs', {'num_gpu': 2, 'train': {'compile': True}}),
    ('val.amp', 'fp16 on 2 GPUs', {'num_gpu': 2, 'val': {'amp': 'fp16'}}),
])
def test_speed(key, message, changes, monkeypatch):
    """DataParallel runs replicas in threads, in which there is neither autocast nor torch.compile."""
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    data = {'train': {'type': 'Another', 'batch_size_per_gpu': 8}}
    good = {'amp': 'bf16', 'channels_last': True, 'compile': True, 'accumulate': 4}
    for accepted in ({'train': good, 'val': {'amp': 'fp16'}}, {'train': dict.fromkeys(good), 'val': {'amp': None}},
                     {'train': good, 'num_gpu': 2, 'dist': True}, {'train': {'channels_last': True}, 'num_gpu': 2}):
        assert_accepted(datasets=data, **accepted)
    assert_refused(key, message, **{'datasets': data, **changes})


def test_map_that_the_network_does_not_provide():
    assert_refused('val.save_uncertainty', 'network_g: EDSR does not provide log_var; EDSRVar', network_g={
        **TWO, 'type': 'EDSR'}, val={'save_uncertainty': True})


# ---- data


MAPS = {'type': 'PairedImageUncertaintyDataset', 'batch_size_per_gpu': 8}


@pytest.mark.parametrize('network', ['EDSR', 'EDSRTwo'])
def test_maps_in_the_data_require_no_network(network, monkeypatch):
    monkeypatch.setattr('udl_plugin.config.cross_checks.check_pairs', lambda *_: Pairs(100, []))
    monkeypatch.setattr('udl_plugin.config.cross_checks.check_maps', lambda *_: None)
    assert_accepted(datasets={'train': MAPS}, train={'pixel_opt': {'type': 'UDL'}},
                    network_g={**TWO, 'type': network}, path={'pretrain_network_g': 'x.pth'})


def test_maps_that_nothing_reads():
    assert_refused('datasets.train.dataroot_uncertainty', 'is only read with type: PairedImageUncert',
                   datasets={'train': {'type': 'Another', 'dataroot_uncertainty': 'x.lmdb'}})


@pytest.mark.parametrize('changes', [
    {'train': {'pixel_opt': {'type': 'ESU'}}}, {'train': {'pixel_opt': {'type': 'L1Loss'}}}, {'train': {}},
    {'train': {'pixel_opt': {'type': 'UDL', 'source': 'gradient'}}},
    {'train': {'pixel_opt': {'type': 'L1Loss'}}, 'model_type': 'SRModel'},
])
def test_maps_that_no_loss_weights_by(changes, monkeypatch):
    monkeypatch.setattr('udl_plugin.config.cross_checks.check_pairs', lambda *_: Pairs(100, []))
    monkeypatch.setattr('udl_plugin.config.cross_checks.check_maps', lambda *_: None)
    assert_refused('datasets.train.type', 'no loss weights by its maps', datasets={'train': MAPS}, **changes)


def test_fingerprint_of_maps(tmp_path):
    state_dict = EDSRVar(**TINY).state_dict()
    opt = {'datasets': {'train': {'dataroot_uncertainty': str(tmp_path)}}}
    atomic_write(tmp_path / METADATA, make_metadata('m.pth', 'params', fingerprint(state_dict), {}, 2, {}))
    for good in ({}, state_dict):
        check_map_fingerprint(opt, good)
    check_map_fingerprint({'datasets': {}}, state_dict)
    state_dict['conv_first.bias'] = state_dict['conv_first.bias'] + 1
    with pytest.raises(UserErrors) as caught:
        check_map_fingerprint(opt, state_dict)
    assert_error('datasets.train.dataroot_uncertainty', 'not of the network in path.pretrain_network_g, but of m.pth, '
                 'params, .*Have udl-prepare uncertainty --force', caught.value.errors)


@pytest.mark.parametrize('there', [0, 2])
def test_gpus_that_do_not_exist(there, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: there)
    for good in ({'num_gpu': there}, {'num_gpu': 0}, {'num_gpu': 'auto'}, {'num_gpu': 3, 'dist': True}):
        assert_accepted(**good)
    assert_refused('num_gpu', f'3: this machine has {there or "none"}.*; write {there}, or auto', num_gpu=3)


def write_pairs(folder, count, suffix='', **options):
    return {'type': 'PairedImageDataset', 'scale': 2, 'io_backend': {'type': 'lmdb' if suffix else 'disk'},
            'dataroot_gt': str(write_images(folder / f'gt{suffix}', random_images(count, 8))),
            'dataroot_lq': str(write_images(folder / f'lq{suffix}', random_images(count, 4))), **options}


GRAY = {'type': 'DPDNN', 'num_in_ch': 1, 'num_out_ch': 1, 'upscale': 2}


@pytest.mark.parametrize(('network_g', 'color', 'key', 'message'), [
    (GRAY, 'y', None, None),
    (GRAY, None, 'color', '~ gives images of 3 channels, and network_g.num_in_ch is 1; write .*_ch: 3, or color: y'),
    ({**GRAY, 'num_in_ch': 3, 'num_out_ch': 3}, 'y', 'color', 'num_in_ch is 3; write .*_ch: 1, or color: ~'),
    ({'type': 'WithVariance', 'backbone': GRAY}, None, 'color', 'network_g.backbone.num_in_ch is 1')])
def test_channels_that_disagree(tmp_path, network_g, color, key, message):
    changes = {'network_g': network_g, 'datasets': {'val': write_pairs(tmp_path, 1, phase='val', color=color)}}
    if key is None:
        assert_accepted(**changes)
    else:
        assert_refused(f'datasets.val.{key}', message, **changes)


@pytest.mark.parametrize('suffix', ['.lmdb', ''])
def test_batch_that_is_never_full(tmp_path, suffix):
    dataset = write_pairs(tmp_path, 3, suffix, phase='train', gt_size=8)
    for batch, ratio, more in ((3, 1, {}), (6, 2, {}), (2, 1, {'dist': True, 'world_size': 2})):
        for size in (batch, batch + 1):
            train = {**dataset, 'batch_size_per_gpu': size, 'dataset_enlarge_ratio': ratio}
            if size == batch:
                assert_accepted(**more, datasets={'train': train})
            else:
                assert_refused('datasets.train', f'^{batch} images .* do not fill one batch of {size}', **more,
                               datasets={'train': train})


def test_missing_data_is_reported_once():
    dataset = {'type': 'PairedImageDataset', 'phase': 'train', 'scale': 2, 'io_backend': {'type': 'lmdb'}, 'gt_size': 8,
               'dataroot_gt': 'gt.lmdb', 'dataroot_lq': 'lq.lmdb', 'batch_size_per_gpu': 2}
    found = validate_options(minimal(datasets={'train': dataset}))
    assert [error.path for error in found] == [('datasets', 'train', f'dataroot_{side}') for side in ('gt', 'lq')]


def test_data_for_another_loader(tmp_path):
    dataset = write_pairs(tmp_path, 1, name='x', gt_size=8, use_hflip=True, use_rot=True)
    del dataset['scale']
    check_data('train', 2, dataset)
    for changes, key in (({'num_worker_per_gpu': 1}, 'num_worker_per_gpu'), ({'gt_size': '8'}, 'gt_size'),
                         ({'dataroot_gt': 'nowhere'}, 'dataroot_gt'), ({'gt_size': 16}, None)):
        with pytest.raises(UserErrors) as caught:
            check_data('train', 2, {**dataset, **changes})
        assert [error.path for error in caught.value.errors] == [('datasets', 'train', *filter(None, [key]))]


# ---- names and scales


@pytest.mark.parametrize('model_type', ['UDLModel', 'SRModel'])
def test_scale_that_disagrees(model_type):
    assert_accepted(model_type=model_type)
    assert_refused('scale', '3 does not agree with network_g.upscale: 2', model_type=model_type, scale=3)
    assert_refused('scale', 'is missing.*upscale: 2', model_type=model_type, scale=None)


def test_default_scale_of_the_network_counts():
    assert_refused('scale', 'upscale: 4', network_g={'type': 'EDSRVar', 'num_in_ch': 3, 'num_out_ch': 3})


@pytest.mark.parametrize('section', ['network_g', 'datasets', 'path'])
def test_missing_section(section):
    assert_refused(section, 'expected a mapping of options, got None', **{section: None})
    opt = minimal()
    del opt[section]
    assert_error(section, 'is missing', validate_options(opt))


@pytest.mark.parametrize(('key', 'message', 'changes'), [
    ('network_g.type', "there is no 'EDSRVra' .did you mean 'EDSRVar'", {'network_g': {'type': 'EDSRVra'}}),
    ('network_g.type', 'is missing', {'network_g': {'num_feat': 8}}),
    ('network_g.num_feats', "did you mean 'num_feat'", {'network_g': {**TWO, 'type': 'EDSRVar', 'num_feats': 8}}),
    ('train.pixel_opt.type', "there is no 'ESUU' .did you mean 'ESU'", {'train': {'pixel_opt': {'type': 'ESUU'}}}),
    ('train.pixel_opt.offset', 'is not an option of type: ESU', {'train': {'pixel_opt': {'type': 'ESU', 'offset': 1}}}),
    ('train.perceptual_opt.perceptual_wieght', "did you mean 'perceptual_wei", {'train': {'perceptual_opt': {
        'type': 'PerceptualLoss', 'layer_weights': {}, 'perceptual_wieght': 1}}}),
    ('network_g.num_out_ch', 'is missing; type: EDSRVar requires it', {'network_g': {
        'type': 'EDSRVar', 'num_in_ch': 3, 'upscale': 2}}),
])
def test_misspelt_or_missing_name(key, message, changes):
    assert_refused(key, message, **changes)


RCAN = {'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 2}


@pytest.mark.parametrize(('network', 'key', 'message'), [
    ({**RCAN, 'num_feats': 8}, 'network_g.backbone.num_feats', 'is not an option of type: RCAN'),
    ({'type': 'RCANN'}, 'network_g.backbone.type', "there is no 'RCANN'"),
    ({'type': 'RCAN', 'num_in_ch': 3, 'upscale': 2}, 'network_g.backbone.num_out_ch', 'is missing'),
    ({**RCAN, 'upscale': 3}, 'scale', 'agree with network_g.backbone.upscale: 3'),
    ({'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3}, 'scale', 'agree with network_g.backbone.scale: 4'),
    (5, 'network_g.backbone', 'expected a mapping of options, got 5'),
])
@pytest.mark.parametrize('arch', ['WithVariance', 'TwoStep'])
def test_options_of_a_backbone(arch, network, key, message):
    changes = {'path': {'pretrain_network_g': 'x.pth'}, 'scale': 2}
    assert_accepted(**changes, network_g={'type': arch, 'backbone': RCAN})
    assert_refused(key, message, **changes, network_g={'type': arch, 'backbone': network})
