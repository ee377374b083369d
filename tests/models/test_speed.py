"""Options that make training faster or smaller, and what they must not change."""
import copy
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from basicsr.models import build_model
from conftest import TINY, model_options
from torch import nn
from torch.utils.data import DataLoader, Dataset

from udl_plugin.archs import EDSRVar
from udl_plugin.checkpoints.state_dict import fingerprint
from udl_plugin.config.cross_checks import check_map_fingerprint, check_network
from udl_plugin.data.map_format import METADATA, make_metadata
from udl_plugin.errors import UserError
from udl_plugin.models import validation
from udl_plugin.utils.atomic_io import atomic_write

pytestmark = pytest.mark.usefixtures('seed')
CHANGES = {'amp': {'amp': 'bf16'}, 'channels_last': {'channels_last': True}, 'accumulate': {'accumulate': 2},
           'all': {'amp': 'bf16', 'channels_last': True, 'accumulate': 2}}


def options(step, folder, **train):
    opt = model_options(step, folder, **train)
    if step == 2:
        torch.manual_seed(7)
        path = folder / 'step1.pth'
        torch.save({'params': EDSRVar(**TINY).state_dict()}, path)
        opt['path']['pretrain_network_g'] = str(path)
    torch.manual_seed(0)
    return opt


def batch(seed=1, number=4):
    generator = torch.Generator().manual_seed(seed)
    return {'lq': torch.rand(number, 3, 8, 8, generator=generator),
            'gt': torch.rand(number, 3, 16, 16, generator=generator)}


def iterate(model, count=1):
    for number in range(1, count + 1):
        model.feed_data(batch(number))
        model.optimize_parameters(number)
    return model


def gradients(model):
    return {name: parameter.grad for name, parameter in model.net_g.named_parameters()}


class Pairs(Dataset):
    def __init__(self):
        self.opt = {'name': 'pairs'}

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {'lq_path': f'{index}.png', **{name: tensor[index] for name, tensor in batch().items()}}


@pytest.mark.parametrize('step', [1, 2])
@pytest.mark.parametrize('change', CHANGES)
def test_gradients_equal_those_of_plain_training(tmp_path, step, change):
    plain, changed = (iterate(build_model(options(step, tmp_path, **train))) for train in ({}, CHANGES[change]))
    tolerance = 0.05 if 'amp' in CHANGES[change] else 1e-5
    assert changed.log_dict['l_pix'] == pytest.approx(plain.log_dict['l_pix'], rel=tolerance / 5)
    wanted = gradients(plain)
    for name, gradient in gradients(changed).items():
        assert gradient.dtype is torch.float32
        assert (gradient - wanted[name]).norm() <= tolerance * wanted[name].norm(), name


@pytest.mark.parametrize('step', [1, 2])
@pytest.mark.parametrize('change', CHANGES)
def test_checkpoints_look_like_those_of_plain_training(tmp_path, step, change):
    """Float32, under the same names and in the same layout; and a training continues from them."""
    saved = {}
    for name, train in (('plain', {}), ('changed', CHANGES[change])):
        folder = tmp_path / name
        folder.mkdir()
        model = iterate(build_model(options(step, folder, ema_decay=0.9, **train)), 2)
        model.save(0, 2)
        saved[name] = torch.load(folder / 'net_g_2.pth')
    keys = {'network_g', 'params', 'params_ema', *['uncertainty_loss'] * (step == 1)}
    assert saved['plain'].keys() == saved['changed'].keys() == keys
    for key in ('params', 'params_ema'):
        assert list(saved['plain'][key]) == list(saved['changed'][key])
        for value in saved['changed'][key].values():
            assert value.dtype is torch.float32
            assert value.is_contiguous()

    opt = options(step, tmp_path / 'changed', ema_decay=0.9, **CHANGES[change])
    opt['path'].update(pretrain_network_g=str(tmp_path / 'changed/net_g_2.pth'),
                       resume_state=str(tmp_path / 'changed/2.state'))
    resumed = build_model(opt)
    resumed.resume_training(torch.load(tmp_path / 'changed/2.state'))
    for one in (resumed, model):
        one.feed_data(batch(3))
        one.optimize_parameters(3)
    for net in ('net_g', 'net_g_ema'):
        after = getattr(model, net).state_dict()
        for name, value in getattr(resumed, net).state_dict().items():
            torch.testing.assert_close(value, after[name], msg=f'{net}: {name}')


def dtypes_of(model):
    """Names of convolutions to the dtype of their last output."""
    found = {}
    for name, module in model.net_g.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, out, name=name: found.update({name: out.dtype}))
    return found


def test_where_autocast_applies(tmp_path):
    model = build_model(options(2, tmp_path, amp='bf16'))
    found = dtypes_of(model)
    seen = {}
    model.cri_pix.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(enumerate((*args, *kwargs.values()))), with_kwargs=True)
    iterate(model)
    assert {name for name, dtype in found.items() if dtype is torch.float32} == {
        'sr_net.conv_first', 'sr_net.conv_last', 'var_net.backbone.conv_first', 'var_net.var_conv.4'}
    assert {dtype for name, dtype in found.items() if '.body.' in name or 'var_conv.0' in name} == {torch.bfloat16}
    assert [tensor.dtype for tensor in seen.values()] == [torch.float32] * 3
    model.test()
    assert found['sr_net.body.0.conv1'] is torch.float32, 'validation was not asked to'


@pytest.mark.parametrize('maps', [False, True])
def test_autocast_of_validation(tmp_path, maps):
    opt = options(2, tmp_path)
    opt['val'].update(amp='bf16', save_uncertainty=maps)
    model = build_model(opt)
    found = dtypes_of(model)
    model.feed_data(batch(number=1))
    model.test()
    assert found['sr_net.body.0.conv1'] is torch.bfloat16
    assert model.output.dtype is torch.float32
    got = model.output
    model.val_amp = None
    model.test()
    assert not torch.equal(got, model.output)
    assert 255 * (got - model.output).abs().max() < 0.5
    iterate(model)
    assert found['sr_net.body.0.conv1'] is torch.float32, 'training was not asked to'


def test_fp16_scales_its_gradients_and_resumes_the_scale(tmp_path):
    model = build_model(options(2, tmp_path, amp='fp16'))
    assert model.scaler.is_enabled()
    found = dtypes_of(model)
    model.scaler = model.train_step.scaler = torch.amp.GradScaler('cpu', init_scale=1024.)
    iterate(model)
    assert found['sr_net.body.0.conv1'] is torch.float16
    wanted = iterate(build_model(options(2, tmp_path)))
    for name, gradient in gradients(model).items():  # unscaled again
        assert (gradient - gradients(wanted)[name]).norm() < 0.1 * gradients(wanted)[name].norm(), name
    model.save(0, 1)
    resumed = build_model(options(2, tmp_path, amp='fp16'))
    resumed.resume_training(torch.load(tmp_path / '1.state'))
    assert resumed.scaler.state_dict() == model.scaler.state_dict()
    assert resumed.scaler.get_scale() == 1024


def test_fp16_skips_a_step_that_overflows(tmp_path):
    """Its moving average too."""
    model = build_model(options(1, tmp_path, amp='fp16', ema_decay=0.5))
    iterate(model)
    model.scaler = model.train_step.scaler = torch.amp.GradScaler('cpu', init_scale=2.**40)
    nets = [model.net_g, model.net_g_ema]
    before = [copy.deepcopy(net.state_dict()) for net in nets]
    iterate(model)
    for net, values in zip(nets, before):
        assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())
    assert model.scaler.get_scale() == 2.**39


@pytest.mark.parametrize('loss', ['ESU', 'L1Loss'])
def test_overflow_in_fp16_is_explained(tmp_path, loss):
    """Of the network's values, in training and in validation."""
    opt = options(1, tmp_path, amp='fp16', pixel_opt={'type': loss})
    opt['val']['amp'] = 'fp16'
    model = iterate(build_model(opt))
    with torch.no_grad():
        model.net_g.backbone.conv_first.weight.mul_(1e6)
    with pytest.raises(FloatingPointError, match='10 iterations in a row .* fp16 overflows beyond 65504: try'):
        iterate(model, 10)
    model.feed_data({**batch(number=1), 'lq_path': ['a.png']})
    with pytest.raises(FloatingPointError, match='a.png: val.amp: fp16: the network returns values beyond 65504'):
        model.test()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_fingerprint_of_loaded_weights(dtype):
    net = EDSRVar(**TINY)
    stored = {name: value.to(dtype) for name, value in net.state_dict().items()}
    net.load_state_dict(stored)
    assert fingerprint(stored) == fingerprint(net.state_dict())
    stored['conv_first.bias'] = stored['conv_first.bias'] + 1
    assert fingerprint(stored) != fingerprint(net.state_dict())


def test_maps_of_another_network(tmp_path):
    """As after step 1 was trained again: rejected; a base network accepts them."""
    opt = options(2, tmp_path)
    frozen = torch.load(opt['path']['pretrain_network_g'])['params']
    for name, print_of in (('right', fingerprint(frozen)), ('wrong', 'of something else')):
        atomic_write(tmp_path / name / METADATA, make_metadata('old.pth', 'params', print_of, {}, 2, {}))
        maps = {'train': {'dataroot_uncertainty': str(tmp_path / name)}}
        if name == 'right':
            check_map_fingerprint({'datasets': maps}, build_model(opt).net_g.var_net.state_dict())
        else:
            with pytest.raises(UserError, match=r"maps in '.*wrong' are not of the network .*, but of old.pth, params"):
                check_map_fingerprint({'datasets': maps}, frozen)
            with pytest.raises(UserError, match='are not of the network'):
                check_network({**opt, 'datasets': maps})
        check_map_fingerprint({'datasets': maps}, {})


@pytest.mark.parametrize('amp', [None, 'bf16', 'fp16'])
def test_state_of_another_precision_resumes(tmp_path, amp):
    model = iterate(build_model(options(1, tmp_path, amp=amp)))
    model.save(0, 1)
    state = torch.load(tmp_path / '1.state')
    for other in (None, 'bf16', 'fp16'):
        build_model(options(1, tmp_path, amp=other)).resume_training(copy.deepcopy(state))
    del state['scaler']  # as BasicSR writes it
    build_model(options(1, tmp_path, amp=amp)).resume_training(state)


def test_weights_and_features_are_channels_last(tmp_path):
    model = build_model(options(2, tmp_path, channels_last=True, ema_decay=0.9))
    for net in (model.net_g, model.net_g_ema):
        for tensor in net.state_dict().values():
            if tensor.ndim == 4:
                assert tensor.is_contiguous(memory_format=torch.channels_last)
    features = []
    model.net_g.sr_net.body.register_forward_hook(lambda *args: features.append(args[-1]))
    iterate(model)
    assert features[0].is_contiguous(memory_format=torch.channels_last)


def test_batch_passes_in_parts(tmp_path):
    model = build_model(options(2, tmp_path, accumulate=4))
    sizes = []
    model.net_g.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    steps = []
    model.optimizer_g.step = lambda *_: steps.append(1)
    iterate(model)
    assert sizes == [1, 1, 1, 1]
    assert len(steps) == 1


def test_cached_maps_replace_the_frozen_network(tmp_path):
    """Loss and gradients are those of the online map; the frozen network is not run."""
    online = iterate(build_model(options(2, tmp_path)))
    cached = build_model(options(2, tmp_path, accumulate=2))
    with torch.no_grad():
        log_var = cached.net_g.var_net.log_var(batch(1)['lq'])
    cached.net_g.var_net.backbone.conv_first.register_forward_hook(lambda *_: pytest.fail('var_net ran'))
    cached.feed_data({**batch(1), 'log_var': log_var})
    cached.optimize_parameters(1)
    assert cached.log_dict['l_pix'] == pytest.approx(online.log_dict['l_pix'])
    for name, gradient in gradients(cached).items():
        torch.testing.assert_close(gradient, gradients(online)[name])
    cached.feed_data(batch(number=1))  # validation sets have none
    assert cached.given == {}


@pytest.mark.skipif(not shutil.which('g++') and not torch.cuda.is_available(), reason='torch.compile needs a compiler')
@pytest.mark.parametrize('step', [1, 2])
def test_compiled_training(tmp_path, step):
    """Together with all the others. Names are clean, and validation runs the network as it is."""
    train = {'amp': 'bf16', 'channels_last': True, 'accumulate': 2, 'ema_decay': 0.9}
    plain = iterate(build_model(options(step, tmp_path, **train)))
    model = iterate(build_model(options(step, tmp_path, compile=True, **train)))
    assert type(model.trained_net).__name__ == 'OptimizedModule'
    assert model.log_dict['l_pix'] == pytest.approx(plain.log_dict['l_pix'], rel=1e-2)
    for name, gradient in gradients(model).items():
        assert (gradient - gradients(plain)[name]).norm() < 0.05 * gradients(plain)[name].norm(), name
    model.save(0, 1)
    saved = torch.load(tmp_path / 'net_g_1.pth')
    assert list(saved['params']) == list(saved['params_ema']) == list(plain.net_g.state_dict())
    model.trained_net = lambda *_: pytest.fail('validation was compiled')
    model.feed_data(batch(number=1))
    model.test()


def test_gpu_memory_is_released_once_after_validation(tmp_path, monkeypatch):
    """BasicSR releases it after each image, and has to ask for it again for the next one."""
    calls = []
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: calls.append(1))
    model = build_model(options(1, tmp_path))
    model.validation(DataLoader(Pairs()), 1, None, save_img=False)
    assert calls == [1]


def test_metrics_beside_the_network(tmp_path, monkeypatch):
    """As on a GPU: the same results and files; and an error in one ends the validation."""
    results = []
    for name in ('at_once', 'beside'):
        if name == 'beside':
            monkeypatch.setattr(validation, '_pool_beside', lambda device: ThreadPoolExecutor(4))
        (tmp_path / name).mkdir()
        opt = options(1, tmp_path / name)
        opt['val']['save_uncertainty'] = True
        model = build_model(opt)
        model.validation(DataLoader(Pairs()), 1, None, save_img=True)
        files = {path.name: path.read_bytes() for path in sorted((tmp_path / name).rglob('*_1*.*'))}
        results.append((model.metric_results, files))
    assert results[0] == results[1]
    assert len(results[0][1]) == 12
    monkeypatch.setattr(validation, 'calculate_metric', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.validation(DataLoader(Pairs()), 1, None, save_img=False)


@pytest.mark.gpu
@pytest.mark.parametrize('step', [1, 2])
@pytest.mark.parametrize('amp', ['bf16', 'fp16'])
def test_on_a_gpu(tmp_path, step, amp):
    opt = options(step, tmp_path, amp=amp, channels_last=True, accumulate=2)
    opt['num_gpu'] = 1
    opt['val']['amp'] = amp
    model = iterate(build_model(opt), 3)
    model.validation(DataLoader(Pairs()), 1, None, save_img=False)
    assert all(value.dtype is torch.float32 for value in model.net_g.state_dict().values())
