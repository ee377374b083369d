"""The shipped ymls build, belong together, and disagreeing options are refused before anything is made."""
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
from udl_plugin.config.cross_checks import check_network, check_options
from udl_plugin.errors import UserError

YMLS = sorted(path for path in OPTIONS.rglob('*.yml') if path.parent.name != 'studies')


def parse(path, monkeypatch, root):
    """As BasicSR does, from the command line."""
    monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', str(path)])
    return parse_options(str(root), is_train=path.name.startswith('train'))[0]


@pytest.mark.parametrize('path', YMLS, ids=lambda path: str(path.relative_to(OPTIONS)))
def test_yml_builds(path, monkeypatch, tmp_path):
    opt = parse(path, monkeypatch, tmp_path)
    opt['num_gpu'] = 0
    opt['datasets'] = {}  # not on this machine
    if opt['network_g'].get('num_feat', 0) > 64:
        opt['network_g']['num_feat'] = 8  # EDSR, but quickly
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


def test_checkpoint_check_draws_no_random_numbers(tmp_path):
    opt = minimal(network_g={'type': 'EDSRVar', **TINY}, path={'pretrain_network_g': str(tmp_path / 'x.pth')})
    torch.save({'params': EDSRVar(**TINY).state_dict()}, tmp_path / 'x.pth')
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    check_network(opt)
    assert torch.equal(torch.rand(1), expected)
    opt['network_g']['num_feat'] = 16
    with pytest.raises(UserError, match=r'x\.pth.*num_feat: 8 \(network_g: 16\)'):
        check_network(opt)


def test_network_that_cannot_be_built():
    """Found before any folder is made, by the entry points."""
    for network, message in (({'type': 'WithVariance', 'backbone': {'type': 'EDSR', **TINY}, 'features': 'upsampel'},
                              "network_g: EDSR: features: there is no 'upsampel' .did you mean 'upsample'"),
                             ({'type': 'EDSR', **TINY, 'num_feat': '64'}, 'network_g: type: EDSR: cannot be built'),
                             ({'type': 'DPDNN', **TINY}, "network_g: .*'num_block' is not an option of type: DPDNN")):
        with pytest.raises(UserError, match=message):
            check_network(minimal(network_g=network))


def test_option_that_a_network_would_swallow():
    """SwinIR takes any keyword."""
    swinir = {'type': 'SwinIR', 'embed_dims': 24, 'upscale': 2}
    with pytest.raises(UserError, match=r"backbone: 'embed_dims' is not an option of type: SwinIR .*'embed_dim'"):
        check_options(minimal(network_g={'type': 'WithVariance', 'backbone': swinir}))


def test_loss_that_srmodel_cannot_feed():
    with pytest.raises(UserError, match='SRModel gives losses no log_var, and train: pixel_opt: ESU needs it'):
        check_options(minimal(model_type='SRModel', train={'pixel_opt': {'type': 'ESU'}}))


TWO = {'type': 'EDSRTwo', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 2}


@pytest.mark.parametrize(('loss', 'network', 'message'), [
    ({'source': 'error'}, 'EDSRVar', 'UDL needs frozen_sr, and network_g: EDSRVar gives none; EDSRTwo, DPDNNTwo'),
    ({'source': 'log_var'}, 'EDSR', 'UDL needs log_var, and network_g: EDSR gives none'),
    ({'source': 'nothing'}, 'EDSRTwo', "train: pixel_opt: type: UDL: source is 'nothing'"),
    ({'scaling': 'exp', 'source': 'error'}, 'EDSRTwo', 'train: pixel_opt: type: UDL: scaling: exp is for'),
])
def test_source_that_the_network_does_not_give(loss, network, message):
    with pytest.raises(UserError, match=message):
        check_options(minimal(train={'pixel_opt': {'type': 'UDL', **loss}}, network_g={**TWO, 'type': network},
                              path={'pretrain_network_g': 'x.pth'}))


@pytest.mark.parametrize('network', ['EDSR', 'EDSRVar', 'EDSRTwo'])
@pytest.mark.parametrize('model_type', ['UDLModel', 'SRModel'])
def test_gradient_of_the_ground_truth_needs_no_network(network, model_type):
    loss = {'type': 'UDL', 'source': 'gradient'}
    check_options(minimal(train={'pixel_opt': loss}, network_g={**TWO, 'type': network}, model_type=model_type,
                          path={'pretrain_network_g': __file__}))


@pytest.mark.parametrize(('metric', 'network', 'message'), [
    ({'type': 'calculate_map_aus', 'crop_border': 2}, 'EDSRVar', r"m: type: .*did you mean 'calculate_map_ause'"),
    ({'type': 'calculate_map_ause', 'crop_boarder': 2}, 'EDSRVar', "val: metrics: m: 'crop_boarder' is not an option"),
    ({'type': 'calculate_map_ause'}, 'EDSRVar', 'val: metrics: m: crop_border: is missing; write the scale'),
    ({'type': 'calculate_map_ause', 'crop_border': 2}, 'EDSR', 'calculate_map_ause needs log_var, and network_g: EDSR'),
])
def test_metric(metric, network, message):
    good = {'type': 'calculate_map_ause', 'crop_border': 2, 'better': 'lower'}
    check_options(minimal(val={'metrics': {'m': good, 'psnr': {'type': 'calculate_psnr', 'crop_border': 2}}}))
    with pytest.raises(UserError, match=message):
        check_options(minimal(val={'metrics': {'m': metric}}, network_g={**TWO, 'type': network}))


@pytest.mark.parametrize(('changes', 'message'), [
    ({'train': {'amp': 'bfloat16'}}, 'train: amp: bfloat16: must be bf16, fp16, or ~ for float32'),
    ({'val': {'amp': True}}, 'val: amp: True: must be bf16, fp16'),
    ({'train': {'channels_last': 'yes'}}, 'train: channels_last: yes: must be true or false'),
    ({'train': {'compile': 'max'}}, 'train: compile: max: must be true or false'),
    ({'train': {'accumulate': 3}}, 'accumulate: 3: .* of batch_size_per_gpu: 8, a whole number that divides it'),
    ({'train': {'accumulate': 2}, 'datasets': {'train': {'type': 'Another', 'batch_size_per_gpu': '8'}}},
     'accumulate: 2: .* of batch_size_per_gpu: 8'),
    ({'train': {'accumulate': 0}}, 'accumulate: 0: '), ({'train': {'accumulate': True}}, 'accumulate: True: '),
    ({'train': {'accumulate': 2, 'pixel_opt': {'type': 'ESU', 'reduction': 'sum'}}}, 'accumulate: the parts are aver'),
    ({'train': {'accumulate': 2,
                'perceptual_opt': {'type': 'PerceptualLoss', 'layer_weights': {}, 'criterion': 'fro'}}},
     'accumulate: the parts are averaged, and perceptual_opt: criterion: fro'),
    ({'num_gpu': 2, 'train': {'amp': 'bf16'}}, 'train: amp: bf16 on 2 GPUs wants .*torchrun --nproc_per_node=2 -m '),
    ({'num_gpu': 2, 'train': {'compile': True}}, 'train: compile: True on 2 GPUs'),
    ({'num_gpu': 2, 'val': {'amp': 'fp16'}}, 'val: amp: fp16 on 2 GPUs'),
])
def test_speed(changes, message, monkeypatch):
    """DataParallel runs replicas in threads, which know no bfloat16, and which torch.compile does not know."""
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    data = {'train': {'type': 'Another', 'batch_size_per_gpu': 8}}
    good = {'amp': 'bf16', 'channels_last': True, 'compile': True, 'accumulate': 4}
    for accepted in ({'train': good, 'val': {'amp': 'fp16'}}, {'train': dict.fromkeys(good), 'val': {'amp': None}},
                     {'train': good, 'num_gpu': 2, 'dist': True}, {'train': {'channels_last': True}, 'num_gpu': 2}):
        check_options(minimal(datasets=data, **accepted))
    with pytest.raises(UserError, match=message):
        check_options(minimal(**{'datasets': data, **changes}))


@pytest.mark.parametrize(('section', 'key', 'value'), [('train', 'amp', 'bf16'), ('train', 'accumulate', 2),
                                                       ('val', 'amp', 'bf16'), ('val', 'save_uncertainty', True)])
def test_options_that_srmodel_does_not_read(section, key, value):
    off = {'amp': None, 'channels_last': False, 'compile': False, 'accumulate': 1}  # as the files in options/ have it
    check_options(minimal(model_type='SRModel', train=off, val={'amp': None, 'save_uncertainty': False}))
    with pytest.raises(UserError, match=f'{section}: {key}: model_type: SRModel does not read it; write .*UDLModel'):
        check_options(minimal(model_type='SRModel', **{section: {key: value}}))


MAPS = {'type': 'PairedImageUncertaintyDataset', 'batch_size_per_gpu': 8}


@pytest.mark.parametrize('network', ['EDSR', 'EDSRTwo'])
def test_maps_of_the_data_need_no_network(network, monkeypatch):
    monkeypatch.setattr('udl_plugin.config.cross_checks.pair_problems', lambda *_: [])
    monkeypatch.setattr('udl_plugin.config.cross_checks.check_maps', lambda *_: None)
    monkeypatch.setattr('udl_plugin.config.cross_checks.number_of_pairs', lambda *_: 100)
    check_options(minimal(datasets={'train': MAPS}, train={'pixel_opt': {'type': 'UDL'}},
                          network_g={**TWO, 'type': network}, path={'pretrain_network_g': 'x.pth'}))


def test_maps_that_nothing_reads():
    with pytest.raises(UserError, match='datasets: train: dataroot_uncertainty: is read by type: PairedImageUncert'):
        check_options(minimal(datasets={'train': {'type': 'Another', 'dataroot_uncertainty': 'x.lmdb'}}))


@pytest.mark.parametrize('changes', [
    {'train': {'pixel_opt': {'type': 'ESU'}}}, {'train': {'pixel_opt': {'type': 'L1Loss'}}}, {'train': {}},
    {'train': {'pixel_opt': {'type': 'UDL', 'source': 'gradient'}}},
    {'train': {'pixel_opt': {'type': 'L1Loss'}}, 'model_type': 'SRModel'},
])
def test_maps_that_no_loss_weighs_by(changes):
    with pytest.raises(UserError, match='datasets: train: .* no loss weighs by its maps'):
        check_options(minimal(datasets={'train': MAPS}, **changes))


@pytest.mark.parametrize('limits', [[4, -1], [1], 4, ['a', 'b'], [1, 1]])
def test_limits_of_pictures(limits):
    check_options(minimal(val={'uncertainty_limits': [-1, 4]}))
    with pytest.raises(UserError, match='val: uncertainty_limits: .*such as'):
        check_options(minimal(val={'uncertainty_limits': limits}))


def minimal(**changes):
    return {'model_type': 'UDLModel', 'is_train': True, 'scale': 2, 'datasets': {}, 'val': None, 'path': {},
            'network_g': {'type': 'EDSRVar', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 2}, **changes}


@pytest.mark.parametrize('there', [0, 2])
def test_gpus_that_are_not_there(there, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: there)
    for good in ({'num_gpu': there}, {'num_gpu': 0}, {'num_gpu': 'auto'}, {'num_gpu': 3, 'dist': True}):
        check_options(minimal(**good))
    with pytest.raises(UserError, match=f'num_gpu: 3: this machine has {there or "none"}.*; write {there}, or auto'):
        check_options(minimal(num_gpu=3))
    data = {'train': {'type': 'Another', 'prefetch_mode': 'cuda', 'pin_memory': True}}
    if there:
        check_options(minimal(datasets=data))
    else:
        with pytest.raises(UserError, match='datasets: train: prefetch_mode: cuda: there is no GPU'):
            check_options(minimal(datasets=data))


GREY = {'type': 'DPDNN', 'num_in_ch': 1, 'num_out_ch': 1, 'upscale': 2}


@pytest.mark.parametrize(('network_g', 'color', 'message'), [
    (GREY, 'y', None), (GREY, None, 'datasets: val: color: ~ gives images of 3 channels, and network_g: num_in_ch: 1 '
                                    'takes others; write color: y'),
    ({**GREY, 'num_in_ch': 3, 'num_out_ch': 3}, 'y', 'num_in_ch: 3 takes others; write color: ~'),
    ({**GREY, 'num_in_ch': 2}, 'y', 'num_in_ch: 2 takes others; write num_in_ch: 1'),
    ({'type': 'SwinIR', 'upscale': 2}, 'y', 'network_g: in_chans: 3 takes others'),
    ({'type': 'WithVariance', 'backbone': GREY}, None, 'network_g: backbone: num_in_ch: 1 takes others'),
    ({'type': 'EDSR', 'num_in_ch': 1, 'num_out_ch': 1, 'upscale': 2}, 'y',
     'network_g: num_in_ch: 1: EDSR takes away the mean of three channels')])
def test_channels_that_disagree(tmp_path, network_g, color, message):
    section = {'type': 'PairedImageDataset', 'phase': 'val', 'scale': 2, 'io_backend': {'type': 'disk'}, 'color': color,
               'dataroot_gt': str(write_images(tmp_path / 'gt', random_images(1, 8))),
               'dataroot_lq': str(write_images(tmp_path / 'lq', random_images(1, 4)))}
    opt = minimal(network_g=network_g, datasets={'val': section})
    if message is None:
        check_options(opt)
    else:
        with pytest.raises(UserError, match=message):
            check_options(opt)


@pytest.mark.parametrize('kind', ['lmdb', 'disk'])
def test_batch_that_is_never_full(tmp_path, kind):
    end = '.lmdb' * (kind == 'lmdb')
    section = {'type': 'PairedImageDataset', 'phase': 'train', 'scale': 2, 'io_backend': {'type': kind}, 'gt_size': 8,
               'dataroot_gt': str(write_images(tmp_path / f'gt{end}', random_images(3, 8))),
               'dataroot_lq': str(write_images(tmp_path / f'lq{end}', random_images(3, 4)))}
    for batch, ratio, more in ((3, 1, {}), (6, 2, {}), (2, 1, {'dist': True, 'world_size': 2})):
        for size, message in ((batch, None), (batch + 1, f'datasets: train: {batch} images .* do not fill one batch')):
            opt = minimal(**more, datasets={'train': {
                **section, 'batch_size_per_gpu': size, 'dataset_enlarge_ratio': ratio}})
            if message is None:
                check_options(opt)
            else:
                with pytest.raises(UserError, match=message):
                    check_options(opt)


def test_missing_data_is_told_once():
    section = {'type': 'PairedImageDataset', 'phase': 'train', 'scale': 2, 'io_backend': {'type': 'lmdb'}, 'gt_size': 8,
               'dataroot_gt': 'gt.lmdb', 'dataroot_lq': 'lq.lmdb', 'batch_size_per_gpu': 2}
    with pytest.raises(UserError) as caught:
        check_options(minimal(datasets={'train': section}))
    assert [message.split(': there')[0] for message in caught.value.messages] == [
        f'datasets: train: dataroot_{side}' for side in ('gt', 'lq')]


@pytest.mark.parametrize('model_type', ['UDLModel', 'SRModel'])
def test_scale_that_disagrees(model_type):
    check_options(minimal(model_type=model_type))
    with pytest.raises(UserError, match='scale: 3 does not agree with network_g: upscale: 2'):
        check_options(minimal(model_type=model_type, scale=3))
    with pytest.raises(UserError, match='scale: is missing.*upscale: 2'):
        check_options(minimal(model_type=model_type, scale=None))


def test_default_scale_of_the_network_counts():
    with pytest.raises(UserError, match='upscale: 4'):
        check_options(minimal(network_g={'type': 'EDSRVar', 'num_in_ch': 3, 'num_out_ch': 3}))


@pytest.mark.parametrize('section', ['network_g', 'datasets', 'path'])
def test_missing_section(section):
    with pytest.raises(UserError, match=f'^{section}: is missing'):
        check_options(minimal(**{section: None}))


@pytest.mark.parametrize(('changes', 'message'), [
    ({'model_type': 'UDLmodel'}, "model_type: there is no 'UDLmodel' .did you mean 'UDLModel'"),
    ({'network_g': {'type': 'EDSRVra'}}, "network_g: type: there is no 'EDSRVra' .did you mean 'EDSRVar'"),
    ({'network_g': {'num_feat': 8}}, 'network_g: type: is missing'),
    ({'network_g': {'type': 'EDSRVar', 'num_feats': 8}}, "network_g: 'num_feats' .*did you mean 'num_feat'"),
    ({'network_g': {'type': 'EDSR', 'num_feats': 8}}, "network_g: 'num_feats' .*did you mean 'num_feat'"),
    ({'train': {'pixel_opt': {'type': 'ESUU'}}}, "train: pixel_opt: type: there is no 'ESUU' .did you mean 'ESU'"),
    ({'train': {'pixel_opt': {'type': 'ESU', 'offset': 1}}}, "train: pixel_opt: 'offset' is not .* type: ESU"),
    ({'train': {'perceptual_opt': {'type': 'PerceptualLoss', 'perceptual_wieght': 1}}}, "did you mean 'perceptual_wei"),
])
def test_misspelt_name(changes, message):
    with pytest.raises(UserError, match=message):
        check_options(minimal(**changes))


@pytest.mark.parametrize(('section', 'good', 'bad', 'value'), [
    ('val', 'save_img', 'save_igm', True),
    ('train', 'ema_decay', 'ema_deacy', 0.9),
    ('path', 'strict_load_g', 'strict_load_G', False),
])
def test_unread_key(section, good, bad, value):
    for model_type in ('UDLModel', 'SRModel'):
        check_options(minimal(**{section: {good: value}}, model_type=model_type))
        with pytest.raises(UserError, match=f"{section}: '{bad}'.*did you mean '{good}'"):
            check_options(minimal(**{section: {bad: value}}, model_type=model_type))


def test_missing_option():
    with pytest.raises(UserError, match='network_g: num_out_ch: is missing; type: EDSRVar needs it'):
        check_options(minimal(network_g={'type': 'EDSRVar', 'num_in_ch': 3, 'upscale': 2}))


def test_loss_without_reduction():
    with pytest.raises(UserError, match='train: pixel_opt: reduction: none'):
        check_options(minimal(train={'pixel_opt': {'type': 'ESU', 'reduction': 'none'}}))




@pytest.mark.parametrize(('network', 'message'), [
    ({'type': 'RCAN', 'num_feats': 8}, "network_g: backbone: 'num_feats' is not an option of type: RCAN"),
    ({'type': 'RCANN'}, "network_g: backbone: type: there is no 'RCANN'"),
    ({'type': 'RCAN', 'num_in_ch': 3}, 'network_g: backbone: num_out_ch: is missing'),
    ({'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 3}, 'agree with network_g: backbone: upscale: 3'),
    ({'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3}, 'agree with network_g: backbone: scale: 4'),
])
@pytest.mark.parametrize('arch', ['WithVariance', 'TwoStep'])
def test_options_of_a_backbone(arch, network, message):
    changes = {'path': {'pretrain_network_g': 'x.pth'}, 'scale': 2}
    check_options(minimal(**changes, network_g={'type': arch, 'backbone': {
        'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 2}}))
    with pytest.raises(UserError, match=message):
        check_options(minimal(**changes, network_g={'type': arch, 'backbone': network}))
