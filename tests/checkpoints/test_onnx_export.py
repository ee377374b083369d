"""Networks as .onnx: the same results in onnxruntime for any number and size of images, with and without the map."""
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import TINY

from udl_plugin.archs.build import build_network
from udl_plugin.archs.wrapping import base_config
from udl_plugin.checkpoints import onnx_export
from udl_plugin.checkpoints.export import export_network
from udl_plugin.checkpoints.network_file import NetworkFile
from udl_plugin.checkpoints.onnx_export import write_onnx
from udl_plugin.errors import UserError
from udl_plugin.metrics.uncertainty_metrics import expected_error

EDSR = {'type': 'EDSR', **TINY, 'num_block': 1, 'res_scale': 0.1, 'rgb_mean': [0, 0, 0]}
RCAN = {'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_group': 1, 'num_block': 1, 'upscale': 2}
DPDNN = {'num_feat': 4, 'num_step': 1, 'upscale': 3}
SHAPES = ((1, 1, 1), (5, 7, 50), (2, 31, 30), (1, 24, 32))  # number, height, width
pytestmark = pytest.mark.usefixtures('seed')


def new_file(config, loss=None):
    """A network with a map as after training: that of a fresh head is beyond float16."""
    net = build_network(config)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if 'var_conv.4' in name:
                value.mul_(0.03)
    return NetworkFile(net.state_dict(), config, uncertainty_loss=loss)


def run(path, lq):
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return session.run(None, {'lq': lq.numpy()})


def describe_io(path):
    """Name to type and shape of inputs and outputs."""
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return {one.name: (one.type, one.shape) for one in [*session.get_inputs(), *session.get_outputs()]}


@pytest.mark.parametrize('config', [
    {**EDSR, 'type': 'EDSRTwo', 'upscale': 4}, {'type': 'DPDNNVar', 'num_in_ch': 1, 'num_out_ch': 1, **DPDNN},
    {'type': 'WithVariance', 'backbone': RCAN}], ids=lambda config: config['type'])
def test_plain_network(tmp_path, config):
    file, path = new_file(config, 'ESU'), tmp_path / 'net.onnx'
    checked, = export_network(path, file)
    assert 'In onnxruntime' in checked
    net, channels = file.build(), file.channels_and_scale[0]
    for number, height, width in SHAPES:
        lq = torch.rand(number, channels, height, width)
        found, = run(path, lq)
        with torch.no_grad():
            assert np.abs(found - net(lq).numpy()).max() < 1e-5
    metadata = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(metadata.pop('network_g')) == base_config(config)
    colours = 'RGB' if channels == 3 else 'Y'
    assert metadata == {'range': f'{colours} in [0, 1], float32', 'scale': str(file.channels_and_scale[1])}
    assert describe_io(path) == {
        'lq': ('tensor(float)', ['batch', channels, 'height', 'width']),
        'sr': ('tensor(float)', ['batch', channels, 'sr_height', 'sr_width'])}


@pytest.mark.parametrize(('config', 'loss', 'formula', 'image'), [
    ({**EDSR, 'type': 'EDSRVar'}, 'GaussianNLL', '0.797885 * exp(0.5 * log_var)', 'of sr,'),
    ({**EDSR, 'type': 'EDSRTwo', 'upscale': 4}, 'EU', ': exp(log_var)', 'of the frozen network of step 1, not of sr,'),
    ({'type': 'TwoStep', 'backbone': RCAN}, 'ESU', '2 * exp(log_var)', 'of the frozen network of step 1, not of sr,'),
], ids=lambda value: value['type'] if isinstance(value, dict) else None)
def test_network_with_map(tmp_path, config, loss, formula, image):
    file, path = new_file(config, loss), tmp_path / 'net.onnx'
    checked, = export_network(path, file, 'udl')
    assert ' % of expected_error' in checked
    net = file.build()
    for number, height, width in SHAPES:
        lq = torch.rand(number, 3, height, width)
        sr, error = run(path, lq)
        with torch.no_grad():
            target, log_var = net(lq, return_log_var=True)
            frozen = net.var_net(lq, return_log_var=True)[1] if file.stage == 'step 2' else log_var
        assert np.abs(sr - target.numpy()).max() < 1e-5
        np.testing.assert_allclose(error, expected_error(frozen.numpy(), loss), rtol=1e-4)
        assert error.shape == sr.shape
    metadata = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(metadata['network_g']) == config
    assert metadata['uncertainty_loss'] == loss
    assert metadata['expected_error'].startswith('expected absolute error ')
    assert metadata['expected_error'].endswith(formula)
    assert f'{image} in 8-bit levels' in metadata['expected_error']
    assert [*describe_io(path)] == ['lq', 'sr', 'expected_error']
    assert describe_io(path)['expected_error'] == ('tensor(float)', ['batch', 3, 'sr_height', 'sr_width'])


def test_loss_that_is_not_recorded(tmp_path):
    note, _ = write_onnx(tmp_path / 'net.onnx', new_file({**EDSR, 'type': 'EDSRVar'}), with_map=True)
    assert note.startswith('Note: ')
    assert note.endswith('the expected error assumes ESU.')
    metadata = onnxruntime.InferenceSession(tmp_path / 'net.onnx').get_modelmeta().custom_metadata_map
    assert 'uncertainty_loss' not in metadata
    assert '2 * exp(log_var)' in metadata['expected_error']


def test_float16(tmp_path):
    file, path = new_file({**EDSR, 'type': 'EDSRVar', 'num_feat': 32}, 'ESU'), tmp_path / 'half.onnx'
    checked, = write_onnx(path, file, with_map=True, half=True)
    assert 'it differs from PyTorch in float32 by up to 0.' in checked
    assert {kind for kind, _ in describe_io(path).values()} == {'tensor(float16)'}
    sizes = {}
    for one in onnx.load(path).graph.initializer:
        sizes[one.data_type] = sizes.get(one.data_type, 0) + onnx.numpy_helper.to_array(one).size
    values = sum(value.numel() for value in file.state_dict.values())
    assert not {node.op_type for node in onnx.load(path).graph.node} & {'Einsum', 'Cast'}  # not in every runtime
    assert sizes[onnx.TensorProto.FLOAT16] >= values
    assert sizes.get(onnx.TensorProto.FLOAT, 0) < 10
    lq = torch.rand(3, 3, 9, 20).half()
    sr, error = run(path, lq)
    with torch.no_grad():
        target, log_var = file.build()(lq.float(), return_log_var=True)
    assert 0 < 255 * np.abs(sr - target.numpy()).max() < 1
    np.testing.assert_allclose(error, expected_error(log_var.numpy(), 'ESU'), rtol=0.05)
    metadata = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert metadata['range'] == 'RGB in [0, 1], float16'


def test_map_beyond_float16(tmp_path):
    """Where a map expects an error of more than 255 levels, it may say infinity; an error of 5 has to stay one."""
    file = new_file({**EDSR, 'type': 'EDSRVar'}, 'ESU')
    file.state_dict['var_conv.4.weight'].zero_()
    file.state_dict['var_conv.4.bias'].copy_(torch.tensor([1., 20., 1.]))
    write_onnx(tmp_path / 'half.onnx', file, with_map=True, half=True)
    _, error = run(tmp_path / 'half.onnx', torch.rand(1, 3, 5, 5).half())
    np.testing.assert_allclose(error[:, 0], 2 * np.e, rtol=1e-3)
    assert np.isinf(error[:, 1]).all()


@pytest.mark.parametrize(('change', 'bias', 'message'), [
    ({'img_range': 1e5}, 0, 'inf of an 8-bit level in sr; accepted: 1 of an 8-bit level in sr'),  # beyond float16
    ({}, 5000, r'[1-4]\.?\d* of an 8-bit level in sr; accepted: 1 of an 8-bit level in sr')])
def test_float16_that_is_not_precise_enough(tmp_path, change, bias, message):
    file = new_file({**EDSR, **change})
    file.state_dict['conv_last.bias'].fill_(bias)
    with pytest.raises(UserError, match=rf"half\.onnx' is not written: as float16 the network gives other images "
                                        rf'\({message}\)\. Leave out --fp16\.'):
        write_onnx(tmp_path / 'half.onnx', file, half=True)
    assert not (tmp_path / 'half.onnx').exists()


def test_overflow_that_onnxruntime_hides_on_the_cpu(tmp_path):
    """It keeps what lies between two convolutions in float32."""
    file = new_file(EDSR)
    file.state_dict['body.0.conv1.weight'].mul_(1e4)
    file.state_dict['body.0.conv2.weight'].mul_(1e-4)
    with pytest.raises(UserError, match=r'as float16 the network gives other images .inf of'):
        write_onnx(tmp_path / 'half.onnx', file, half=True)


def test_network_that_differs_is_not_written(tmp_path, monkeypatch):
    export, other = torch.onnx.export, new_file(EDSR).build()
    monkeypatch.setattr(torch.onnx, 'export', lambda net, *args, **options: export(other, *args, **options))
    with pytest.raises(UserError, match=r"net\.onnx' is not written: in onnxruntime the network gives other images"):
        write_onnx(tmp_path / 'net.onnx', new_file(EDSR))
    assert not (tmp_path / 'net.onnx').exists()


def test_map_that_differs_is_not_written(tmp_path, monkeypatch):
    file, export = new_file({**EDSR, 'type': 'EDSRVar'}, 'ESU'), torch.onnx.export
    other = onnx_export._OnnxNetwork(file, 'EU')  # the same image, half the error
    monkeypatch.setattr(torch.onnx, 'export', lambda net, *args, **options: export(other, *args, **options))
    with pytest.raises(UserError, match=r"in sr and 50 % of expected_error; accepted: 0\.025 of .* and 0\.1 % of"):
        write_onnx(tmp_path / 'net.onnx', file, with_map=True)
    assert not (tmp_path / 'net.onnx').exists()


def test_network_that_cannot_be_exported(tmp_path):
    config = {'type': 'SwinIR', 'img_size': 8, 'window_size': 8, 'depths': [2], 'embed_dim': 12, 'num_heads': [2],
              'upscale': 2, 'upsampler': 'pixelshuffledirect'}
    file = new_file({'type': 'WithVariance', 'backbone': config})
    with pytest.raises(UserError, match=r"net\.onnx': WithVariance cannot be exported with free height and width"):
        write_onnx(tmp_path / 'net.onnx', file, with_map=True)
    assert not (tmp_path / 'net.onnx').exists()


def test_network_of_even_sizes(tmp_path):
    config = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4,
              'scale': 2}
    with pytest.raises(UserError, match=r"net\.onnx': RRDBNet cannot be exported with free"):
        write_onnx(tmp_path / 'net.onnx', new_file(config))


def test_map_of_a_plain_network(tmp_path):
    with pytest.raises(UserError, match=r"net\.onnx': the input holds a plain network, without a variance head"):
        export_network(tmp_path / 'net.onnx', new_file(EDSR), 'udl')


def test_exporter_of_earlier_versions(tmp_path, monkeypatch):
    """The branch for PyTorch below 2.9, as far as the installed version still has that exporter."""
    monkeypatch.setattr(torch, '__version__', '2.8.0')
    file, path = new_file({**EDSR, 'type': 'EDSRTwo'}, 'ESU'), tmp_path / 'net.onnx'
    write_onnx(path, file, with_map=True)
    assert describe_io(path)['sr'] == ('tensor(float)', ['batch', 3, 'sr_height', 'sr_width'])
    lq = torch.rand(3, 3, 9, 14)
    with torch.no_grad():
        assert np.abs(run(path, lq)[0] - file.build()(lq).numpy()).max() < 1e-5
