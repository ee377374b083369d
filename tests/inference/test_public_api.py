"""`udl_plugin.load(...).upscale(...)`: every form of input, the order of colours, the expected error, lazy import."""
import doctest
import shutil
import subprocess
import sys
import types

import cv2
import huggingface_hub
import numpy as np
import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import ROOT, TINY, random_images, write_images
from PIL import Image
from scipy.stats import laplace, norm

import udl_plugin
from udl_plugin.archs.build import build_network
from udl_plugin.checkpoints.export import export_network
from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.cli import upscale as command
from udl_plugin.errors import UserError
from udl_plugin.inference.visualize import expected_error_picture

STEP1, STEP2 = ({'type': name, **TINY} for name in ('EDSRVar', 'EDSRTwo'))
GREY = {'type': 'DPDNNVar', 'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 4, 'num_step': 1, 'upscale': 2}
pytestmark = pytest.mark.usefixtures('seed')


def save(path, config, uncertainty_loss=None):
    save_checkpoint(path, {'params': build_network(config).state_dict()}, config, uncertainty_loss)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    return save(tmp_path / 'net_g_latest.pth', STEP2, 'ESU')


@pytest.fixture
def upscaler(checkpoint):
    return udl_plugin.load(checkpoint, device='cpu')


@pytest.fixture
def photo(tmp_path):
    """A path, and its RGB array."""
    write_images(tmp_path / 'photos', random_images(1, 12, 20))
    path = tmp_path / 'photos/image_0.png'
    return path, cv2.imread(str(path))[:, :, ::-1].copy()


def check_equal(result, expected):
    assert isinstance(result, udl_plugin.UpscaleResult)
    np.testing.assert_array_equal(result.image, expected.image)
    np.testing.assert_allclose(result.expected_error, expected.expected_error, rtol=1e-5)


def test_array(upscaler, photo):
    result = upscaler.upscale(photo[1])
    assert (result.image.shape, result.image.dtype) == ((24, 40, 3), np.uint8)
    assert (result.expected_error.shape, result.expected_error.dtype) == ((24, 40, 3), np.float32)
    np.testing.assert_allclose(result.expected_error, 2 * np.exp(result.log_var.transpose(1, 2, 0)), rtol=1e-5)


def test_path_and_pil_image(upscaler, photo):
    path, rgb = photo
    expected = upscaler.upscale(rgb)
    for image in (path, str(path), Image.open(path), Image.fromarray(rgb)):
        check_equal(upscaler.upscale(image), expected)


def test_file_of_the_command(upscaler, checkpoint, photo, tmp_path):
    """The command writes the same image, and red stays red."""
    path, rgb = photo
    out = tmp_path / 'sr.png'
    assert command.main([str(path), str(out), '--model', str(checkpoint), '--device', 'cpu', '--uncertainty']) == 0
    result = upscaler.upscale(rgb)
    np.testing.assert_array_equal(np.asarray(Image.open(out)), result.image)
    np.testing.assert_array_equal(np.load(tmp_path / 'sr_log_var.npy'), result.log_var)


def test_result_follows_the_order_of_colours(tmp_path):
    """A network that passes the first channel only: red of the input is red of the result and of the error."""
    net = build_network({**STEP1, 'rgb_mean': [0, 0, 0]})
    with torch.no_grad():
        net.backbone.conv_last.bias.copy_(torch.tensor([255., 0., 0.]))
        net.backbone.conv_last.weight.zero_()
        net.var_conv[4].weight.zero_()
        net.var_conv[4].bias.copy_(torch.tensor([2., 0., 0.]))
    save_checkpoint(tmp_path / 'net.pth', {'params': net.state_dict()}, {**STEP1, 'rgb_mean': [0, 0, 0]}, 'EU')
    result = udl_plugin.load(tmp_path / 'net.pth', 'cpu').upscale(np.zeros((5, 6, 3), np.uint8))
    assert (result.image == [255, 0, 0]).all()
    np.testing.assert_allclose(result.expected_error, np.broadcast_to(np.exp([2., 0., 0.]), (10, 12, 3)), rtol=1e-5)


@pytest.mark.parametrize('batch', [False, True])
@pytest.mark.parametrize('channels', [1, 3])
def test_tensor(upscaler, photo, channels, batch):
    rgb = photo[1][:, :, :channels]
    tensor = torch.from_numpy(rgb / 255).permute(2, 0, 1).to(torch.float64 if batch else torch.float32)
    result = upscaler.upscale(tensor[None] if batch else tensor)
    expected = upscaler.upscale(rgb if channels == 3 else rgb[:, :, 0])
    assert result.image.dtype == result.expected_error.dtype == torch.float32
    assert result.image.shape == ((1,) * batch + (channels, 24, 40))
    assert result.expected_error.shape == ((1,) * batch + (3, 24, 40))
    assert result.image.min() >= 0
    assert result.image.max() <= 1
    planes, errors = (part[0] if batch else part for part in (result.image, result.expected_error))
    image = expected.image if channels == 3 else expected.image[:, :, None]
    assert np.abs(planes.permute(1, 2, 0).numpy() * 255 - image).max() < 0.51
    np.testing.assert_allclose(errors.permute(1, 2, 0), expected.expected_error, rtol=1e-5)
    with torch.no_grad():
        lq = tensor[None].float().expand(1, 3, 12, 20)
        sr = upscaler.net(lq).clamp(0, 1)[0]
    torch.testing.assert_close(planes, sr if channels == 3 else sr.mean(0, keepdim=True))


def test_uint16_grey_and_alpha(upscaler, tmp_path):
    deep = random_images(1, 9)['image_0'].astype(np.uint16) * 257 + 3
    images = {'deep': deep, 'grey': deep[:, :, 0].astype(np.uint8), 'deep_grey': deep[:, :, 0],
              'alpha': np.dstack([deep, deep[:, :, :1]]).astype(np.uint8)}
    for name, rgb in images.items():
        path = tmp_path / f'{name}.png'
        cv2.imwrite(str(path), rgb if rgb.ndim == 2 else cv2.cvtColor(
            rgb, cv2.COLOR_RGB2BGR if rgb.shape[2] == 3 else cv2.COLOR_RGBA2BGRA))
        result = upscaler.upscale(rgb)
        assert result.image.dtype == rgb.dtype
        assert result.image.shape == (18, 18, *rgb.shape[2:])
        assert result.expected_error.shape == (18, 18, 3)
        check_equal(upscaler.upscale(path), result)
        if name != 'deep':  # PIL has no RGB of 16 bits
            check_equal(upscaler.upscale(Image.open(path)), result)


@pytest.mark.parametrize(('mode', 'shape'), [
    ('1', (24, 40)), ('L', (24, 40)), ('P', (24, 40, 3)), ('CMYK', (24, 40, 3)), ('LA', (24, 40, 4)),
    ('RGBA', (24, 40, 4))])
def test_modes_of_pil(upscaler, photo, mode, shape):
    image = Image.open(photo[0]).convert('L').convert(mode) if mode == 'LA' else Image.open(photo[0]).convert(mode)
    result = upscaler.upscale(image)
    assert (result.image.shape, result.image.dtype) == (shape, np.uint8)
    back = {'1': 'L', 'P': 'RGB', 'CMYK': 'RGB', 'LA': 'RGBA'}.get(mode, mode)
    check_equal(result, upscaler.upscale(np.asarray(image.convert(back))))


def test_pil_image_is_turned_as_its_exif_says(upscaler, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photo[0]).save(tmp_path / 'turned.png', exif=exif)
    expected = upscaler.upscale(np.rot90(photo[1], -1).copy())
    check_equal(upscaler.upscale(tmp_path / 'turned.png'), expected)
    check_equal(upscaler.upscale(Image.open(tmp_path / 'turned.png')), expected)


def test_network_of_one_channel(tmp_path, photo):
    upscaler = udl_plugin.load(save(tmp_path / 'grey.pth', GREY, 'EU'), 'cpu')
    result = upscaler.upscale(photo[1])
    assert (result.image.shape, result.expected_error.shape) == ((24, 40, 3), (24, 40, 1))
    result = upscaler.upscale(torch.from_numpy(photo[1] / 255).permute(2, 0, 1))
    assert (result.image.shape, result.expected_error.shape) == ((3, 24, 40), (1, 24, 40))


# ---- the expected error

@pytest.mark.parametrize('loss', ['ESU', 'EU', 'GaussianNLL'])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_loss_that_the_file_records(tmp_path, photo, loss, suffix):
    """`E|e|` where the loss is least: ESU, s = ln(E|e| / 2); EU, the scale of a Laplace distribution; Gaussian NLL, the
    variance of a normal one."""
    path = save(tmp_path / 'net.pth', STEP1, loss)
    if suffix == '.safetensors':
        export_network(tmp_path / 'net.safetensors', load_network_file(path), 'udl')
        path = tmp_path / 'net.safetensors'
    upscaler = udl_plugin.load(path, 'cpu')
    assert (upscaler.uncertainty_loss, upscaler.notes) == (loss, [])
    result = upscaler.upscale(photo[1])
    s = result.log_var.transpose(1, 2, 0).astype(np.float64)
    mean = {'ESU': 2 * np.exp(s), 'EU': np.exp(s) * laplace().expect(np.abs),
            'GaussianNLL': np.exp(s / 2) * norm().expect(np.abs)}[loss]
    np.testing.assert_allclose(result.expected_error, mean, rtol=1e-5)


def test_file_that_records_no_loss(tmp_path):
    path = save(tmp_path / 'net.pth', STEP1)
    upscaler = udl_plugin.load(path, 'cpu')
    assert upscaler.uncertainty_loss == 'ESU'
    assert '(none) is not one of ESU, EU, GaussianNLL; the expected error assumes ESU' in upscaler.notes[0]
    upscaler = udl_plugin.load(path, 'cpu', uncertainty_loss='EU')
    assert (upscaler.uncertainty_loss, upscaler.notes) == ('EU', [])
    with pytest.raises(udl_plugin.UserError, match=r"net\.pth': uncertainty_loss: 'L1' is not one of ESU, EU"):
        udl_plugin.load(path, 'cpu', uncertainty_loss='L1')
    upscaler = udl_plugin.load(save(path, STEP1, 'MyLoss'), 'cpu')
    assert upscaler.uncertainty_loss == 'ESU'
    assert '(MyLoss) is not one of ESU' in upscaler.notes[0]


def test_without_uncertainty(tmp_path, checkpoint, photo):
    plain = udl_plugin.load(save(tmp_path / 'plain.pth', {'type': 'EDSR', **TINY}), 'cpu')
    assert plain.upscale(photo[1]).expected_error is None
    assert plain.upscale(torch.zeros(3, 4, 4)).expected_error is None
    with pytest.raises(udl_plugin.UserError, match=r"plain\.pth': it holds a plain network, without a variance head"):
        udl_plugin.load(tmp_path / 'plain.pth', 'cpu', uncertainty=True)
    result = udl_plugin.load(checkpoint, 'cpu', uncertainty=False).upscale(photo[1])
    assert result.expected_error is result.log_var is None
    np.testing.assert_array_equal(result.image, udl_plugin.load(checkpoint, 'cpu').upscale(photo[1]).image)


# ---- load and repr

def test_device(checkpoint):
    assert udl_plugin.load(checkpoint).device.type == ('cuda' if torch.cuda.is_available() else 'cpu')
    assert udl_plugin.load(checkpoint, torch.device('cpu')).device.type == 'cpu'
    for device in ('nonsense', 'cuda:77'):
        with pytest.raises(udl_plugin.UserError, match=f'device {device}: '):
            udl_plugin.load(checkpoint, device)


def test_load_of_other_files(tmp_path):
    with pytest.raises(udl_plugin.UserError, match=r"there is no file '.*nowhere\.pth'"):
        udl_plugin.load(tmp_path / 'nowhere.pth')
    ema = build_network(STEP1).state_dict()
    torch.save({'params': build_network(STEP1).state_dict(), 'params_ema': ema}, tmp_path / 'net.pth')
    upscaler = udl_plugin.load(tmp_path / 'net.pth', 'cpu', network_g=STEP1)
    assert torch.equal(upscaler.net.state_dict()['conv_last.weight'], ema['conv_last.weight'])
    upscaler = udl_plugin.load(tmp_path / 'net.pth', 'cpu', network_g=STEP1, param_key='params', tile=64)
    assert not torch.equal(upscaler.net.state_dict()['conv_last.weight'], ema['conv_last.weight'])
    assert upscaler.tile == 64


def test_short_reprs(upscaler, photo):
    assert repr(upscaler) == "Upscaler(EDSRTwo x2, step 2, 12,785 parameters, device='cpu')"
    result = upscaler.upscale(photo[1])
    assert repr(result) == 'UpscaleResult(image: uint8 (24, 40, 3), expected_error: float32 (24, 40, 3), mean ' \
        f'{result.expected_error.mean():.3g})'
    result = upscaler.upscale(torch.zeros(3, 4, 4))
    assert repr(result).startswith('UpscaleResult(image: float32 (3, 8, 8), expected_error: float32 (3, 8, 8), mean ')


def test_picture_of_the_expected_error(checkpoint, photo):
    upscaler = udl_plugin.load('edsr_xs_x3', 'cpu')
    result = upscaler.upscale(photo[1])
    for arguments in ({}, {'limits': (0, 5), 'colormap': 'authors'}):
        expected = cv2.cvtColor(expected_error_picture(result.log_var, **arguments), cv2.COLOR_BGR2RGB)
        np.testing.assert_array_equal(upscaler.draw_expected_error(result, **arguments), expected)
    with pytest.raises(UserError, match='has no expected error'):
        upscaler.draw_expected_error(udl_plugin.load(checkpoint, 'cpu', uncertainty=False).upscale(photo[1]))


def test_example_in_the_docstring(checkpoint, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo[0].rename('photo.png')
    finder = doctest.DocTestFinder(recurse=False)
    example, = finder.find(udl_plugin.load, 'load', globs={})
    assert len(example.examples) == 5
    assert doctest.DocTestRunner().run(example).failed == 0


# ---- shared networks

def same(one, other):
    """Bit for bit."""
    return all(type(left) is type(right) and np.array_equal(left, right) for left, right in (
        (one.image, other.image), (one.expected_error, other.expected_error), (one.log_var, other.log_var)))


@pytest.mark.parametrize(('config', 'loss'), [
    (STEP1, 'GaussianNLL'), (STEP2, 'ESU'), (STEP2, None), (GREY, 'EU'), ({'type': 'EDSR', **TINY}, None)],
    ids=['step 1', 'step 2', 'no loss', 'grey', 'plain'])
def test_shared_network_is_the_same(tmp_path, photo, config, loss):
    upscaler = udl_plugin.load(save(tmp_path / 'net.pth', config, loss), 'cpu')
    upscaler.save_pretrained(tmp_path / 'shared')
    found = udl_plugin.from_pretrained(tmp_path / 'shared', 'cpu')
    assert (repr(found), found.uncertainty_loss, found.notes) == (
        repr(upscaler), upscaler.uncertainty_loss, upscaler.notes)
    assert same(found.upscale(photo[1]), upscaler.upscale(photo[1]))
    assert same(udl_plugin.load(tmp_path / 'shared', 'cpu').upscale(photo[1]), upscaler.upscale(photo[1]))


def test_what_runs_is_shared(checkpoint, tmp_path, photo):
    """Weights and loss that were chosen, and no network that does not run."""
    ema = build_network(STEP2).state_dict()
    torch.save({**torch.load(checkpoint), 'params_ema': ema}, tmp_path / 'ema.pth')
    upscaler = udl_plugin.load(tmp_path / 'ema.pth', 'cpu', uncertainty_loss='EU')
    upscaler.save_pretrained(tmp_path / 'shared')
    found = load_network_file(tmp_path / 'shared')
    assert found.uncertainty_loss == 'EU'
    assert all(torch.equal(value, ema[name]) for name, value in found.state_dict.items())
    udl_plugin.load(checkpoint, 'cpu', uncertainty=False).save_pretrained(tmp_path / 'plain')
    assert load_network_file(tmp_path / 'plain').stage == 'plain'
    options = {'uncertainty': False, 'tile': 64, 'self_ensemble': True}
    found = udl_plugin.from_pretrained(tmp_path / 'shared', 'cpu', **options)
    assert (found.uncertainty, found.tile, found.self_ensemble) == (False, 64, True)


def test_shared_network_of_the_users_own(tmp_path, photo, monkeypatch):
    class OwnSharedNet(torch.nn.Module):
        def __init__(self, num_feat=4):
            super().__init__()
            self.body, self.up = torch.nn.Conv2d(3, num_feat, 3, 1, 1), torch.nn.Conv2d(num_feat, 12, 3, 1, 1)

        def forward(self, x):
            return torch.pixel_shuffle(self.up(self.body(x)), 2)

    monkeypatch.setattr(ARCH_REGISTRY, '_obj_map', {**ARCH_REGISTRY._obj_map, 'OwnSharedNet': OwnSharedNet})
    config = {'type': 'TwoStep', 'backbone': {'type': 'OwnSharedNet', 'num_feat': 6}}
    upscaler = udl_plugin.load(save(tmp_path / 'net.pth', config, 'ESU'), 'cpu')
    upscaler.save_pretrained(tmp_path / 'shared')
    found = udl_plugin.from_pretrained(tmp_path / 'shared', 'cpu')
    assert same(found.upscale(photo[1]), upscaler.upscale(photo[1]))
    ARCH_REGISTRY._obj_map.pop('OwnSharedNet')
    with pytest.raises(udl_plugin.UserError, match="there is no 'OwnSharedNet'.*If it is a class of your own"):
        udl_plugin.from_pretrained(tmp_path / 'shared', 'cpu')


def test_hub(upscaler, tmp_path, photo, monkeypatch):
    """What push_to_hub uploads, from_pretrained downloads; the Hub itself is faked."""
    calls = []

    def upload_folder(_, repo_id, folder_path, **options):
        calls.append(options['commit_message'])
        shutil.copytree(folder_path, tmp_path / 'hub' / repo_id)
        return types.SimpleNamespace(commit_url='address')

    monkeypatch.setattr(huggingface_hub.HfApi, 'create_repo', lambda *_, **options: calls.append(options['private']))
    monkeypatch.setattr(huggingface_hub.HfApi, 'upload_folder', upload_folder)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda repo_id, revision, **_: calls.append(revision) or (
        tmp_path / 'hub' / repo_id))
    assert upscaler.push_to_hub('user/name', license='mit', scores={'Set5': {'PSNR': 30}}, private=True,
                                commit_message='First') == 'address'
    found = udl_plugin.from_pretrained('user/name', 'cpu', revision='v1')
    assert calls == [True, 'First', 'v1']
    assert same(found.upscale(photo[1]), upscaler.upscale(photo[1]))
    card = (tmp_path / 'hub/user/name/README.md').read_text()
    assert 'license: mit' in card
    assert '| Set5 | 30 |' in card


# ---- the package

def test_exports():
    assert set(udl_plugin.__all__) <= set(dir(udl_plugin))
    for name in udl_plugin.__all__:
        assert getattr(udl_plugin, name) is not None
    from udl_plugin.errors import UserError
    from udl_plugin.plugin import register
    assert udl_plugin.register is register
    assert udl_plugin.UserError is UserError
    with pytest.raises(AttributeError, match="'udl_plugin' has no attribute 'lode'"):
        _ = udl_plugin.lode


def test_import_is_cheap():
    """CPU time of new processes, which does not depend on what else the machine does; the least of five."""
    code = ('import sys, time; begin = time.process_time(); import udl_plugin; took = time.process_time() - begin;'
            "heavy = {'torch', 'numpy', 'basicsr', 'cv2', 'PIL', 'pydantic', 'scipy', 'yaml'} & set(sys.modules);"
            'print(took, *heavy)')
    outputs = [subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
               .split() for _ in range(5)]
    assert [output[1:] for output in outputs] == [[]] * 5
    assert min(float(output[0]) for output in outputs) < 0.05
