"""Options that disagree with each other, the data or the checkpoints are reported."""
import re

import pytest
import torch
from basicsr.utils.registry import MODEL_REGISTRY
from conftest import TINY, random_images, write_images

from udl_plugin.archs import EDSRVar
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
from udl_plugin.models.udl_model import UDLModel
from udl_plugin.utils.atomic_io import atomic_write


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


def test_names_of_torch_compile(tmp_path):
    """SRModel would end in BasicSR's traceback."""
    state_dict = EDSRVar(**TINY).state_dict()
    torch.save({'params': {f'_orig_mod.{name}': value for name, value in state_dict.items()}}, tmp_path / 'x.pth')
    opt = minimal(network_g={'type': 'EDSRVar', **TINY}, path={'pretrain_network_g': str(tmp_path / 'x.pth')})
    check_network(opt)
    assert_error('path.pretrain_network_g', "has torch.compile's names.*write model_type: UDLModel",
                 network_errors({**opt, 'model_type': 'SRModel'}))


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


def test_model_derived_from_udlmodel_is_checked_like_it(monkeypatch):
    monkeypatch.setitem(MODEL_REGISTRY._obj_map, 'OwnModel', type('OwnModel', (UDLModel,), {}))
    own = {'model_type': 'OwnModel', 'network_g': TWO}
    assert_accepted(**own, train={'pixel_opt': {'type': 'UDL'}}, path={'pretrain_network_g': 'nowhere.pth'})
    assert_refused('path.pretrain_network_g', 'is missing. EDSRTwo starts from a checkpoint of step 1', **own)
    assert_refused('train.pixel_opt', 'ESU trains the log-variance, which is frozen in network_g: EDSRTwo', **own,
                   train={'pixel_opt': {'type': 'ESU'}}, path={'pretrain_network_g': 'x.pth'})


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


CACHED = {**MAPS, 'type': 'PairedImageCachedDataset', 'phase': 'train', 'io_backend': {'type': 'lmdb'}}


@pytest.mark.parametrize(('key', 'message', 'dataset', 'changes'), [
    ('cache', 'is only read with type: PairedImageCachedDataset; write that', {'type': 'PairedImageDataset'}, {}),
    ('type', 'is for training from LMDBs; write PairedImageDataset', {'io_backend': {'type': 'disk'}}, {}),
    ('std', 'is not supported by type: PairedImageCachedDataset', {'std': [0.5]}, {}),
    ('mean', 'is not supported by type: PairedImageCachedDataset', {'mean': [0.5]}, {}),
    ('type', 'PairedImageCachedDataset: no loss weights by its maps.* Delete dataroot_uncertainty',
     {'dataroot_uncertainty': 'x.lmdb'}, {'train': {'pixel_opt': {'type': 'ESU'}}}),
    ('cache', 'device requires model_type: UDLModel', {}, {
        'model_type': 'SRModel', 'train': {'pixel_opt': {'type': 'L1Loss'}}}),
])
def test_images_in_memory(key, message, dataset, changes, monkeypatch):
    monkeypatch.setattr('udl_plugin.config.cross_checks.check_pairs', lambda *_: Pairs(100, []))
    monkeypatch.setattr('udl_plugin.config.cross_checks.check_maps', lambda *_: None)
    assert_accepted(datasets={'train': {**CACHED, 'dataroot_uncertainty': 'x.lmdb'}},
                    train={'pixel_opt': {'type': 'UDL'}}, network_g={**TWO, 'type': 'EDSR'})
    assert_refused(f'datasets.train.{key}', message, **{
        'datasets': {'train': {**CACHED, 'cache': 'device', **dataset}}, **changes})


@pytest.mark.parametrize('changes', [
    {'train': {'pixel_opt': {'type': 'ESU'}}}, {'train': {'pixel_opt': {'type': 'JointUDL'}}},
    {'train': {'pixel_opt': {'type': 'L1Loss'}}}, {'train': {}},
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
    ({'type': 'WithVariance', 'backbone': GRAY}, None, 'color', 'network_g.backbone.num_in_ch is 1'),
    ({'type': 'EDSR', **TINY}, 'y', 'color', 'takes RGB images alone; write color: ~, or use DPDNN')])
def test_channels_that_disagree(tmp_path, network_g, color, key, message):
    changes = {'network_g': network_g, 'datasets': {'val': write_pairs(tmp_path, 1, phase='val', color=color)}}
    if key is None:
        assert_accepted(**changes)
    else:
        assert_refused(f'datasets.val.{key}', message, **changes)


@pytest.mark.parametrize('metric', ['calculate_psnr', 'calculate_map_ause'])
def test_metric_without_ground_truth(tmp_path, metric):
    data = {'name': 'x', 'type': 'SingleImageDataset', 'dataroot_lq': str(tmp_path), 'io_backend': {'type': 'disk'}}
    assert_accepted(datasets={'val': data})
    assert_accepted(datasets={'val': data}, val={'metrics': {'niqe': {'type': 'calculate_niqe', 'crop_border': 2}}})
    assert_refused('datasets.val.type', 'SingleImageDataset has no ground truth, which val.metrics.m requires; delete '
                   'val.metrics, or write type: PairedImageDataset', datasets={'val': data},
                   val={'metrics': {'m': {'type': metric, 'crop_border': 2, 'better': 'lower'}}})


@pytest.mark.parametrize(('options', 'color', 'expected'), [
    ({}, None, ['val.metrics.m: on RGB. Papers report it on Y: test_y_channel: true.']),
    ({'test_y_channel': False}, None, ['val.metrics.m: on RGB. Papers report it on Y: test_y_channel: true.']),
    ({'test_y_channel': True}, None, []), ({}, 'y', [])])
def test_metric_on_rgb_is_noted(tmp_path, options, color, expected):
    notes = []
    dataset = write_pairs(tmp_path, 1, phase='val', color=color)
    val = {'metrics': {'m': {'type': 'calculate_psnr', 'crop_border': 2, **options}}}
    found = validate_options(minimal(datasets={'val': dataset}, val=val, network_g=GRAY if color else {
        **TWO, 'type': 'EDSR'}), notes=notes)
    assert (found, notes) == ([], expected)


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
