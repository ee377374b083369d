"""The command udl-upscale. tests/inference/test_upscaler.py tests the computation."""
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, random_images, write_images
from PIL import Image, ImageCms

from udl_plugin.archs.build import build_network
from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.cli.upscale import ABOUT, MAP_FILES, main, parse
from udl_plugin.data.image_io import read_icc_profile
from udl_plugin.inference.upscaler import Upscaler
from udl_plugin.inference.visualize import encode_png, expected_error_picture
from udl_plugin.utils.imresize import imresize

NETWORK_G = {'type': 'EDSRTwo', **TINY}
pytestmark = pytest.mark.usefixtures('seed')


@pytest.fixture
def model(tmp_path):
    save_checkpoint(tmp_path / 'model.pth', {'params': build_network(NETWORK_G).state_dict()}, NETWORK_G)
    return tmp_path / 'model.pth'


@pytest.fixture
def photos(tmp_path):
    return write_images(tmp_path / 'photos', random_images(3, 12, 20))


def run(source, target, model, *more):
    return main([str(source), str(target), '--model', str(model), '--device', 'cpu', *map(str, more)])


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_one_image(tmp_path, photos, model, capsys):
    expected = cv2.cvtColor(Upscaler(load_network_file(model)).upscale(photos / 'image_0.png').image, cv2.COLOR_RGB2BGR)
    assert run(photos / 'image_0.png', tmp_path / 'new' / 'sr.png', model) == 0
    assert np.array_equal(read(tmp_path / 'new' / 'sr.png'), expected)
    out, err = capsys.readouterr()
    assert 'Upscaling: 100%' in err
    assert out == f'EDSRTwo x2, step 2: 1 image, {tmp_path}/new/sr.png\n'
    assert run(photos / 'image_0.png', tmp_path / 'folder', model, '--quiet') == 0
    assert np.array_equal(read(tmp_path / 'folder' / 'image_0.png'), expected)
    assert capsys.readouterr() == ('', '')


def test_folder_with_maps(tmp_path, photos, model, capsys):
    assert run(photos, tmp_path / 'out', model, '--uncertainty', '--tile', 64) == 0
    names = [f'image_{number}{end}' for number in range(3) for end in ('.png', *MAP_FILES)]
    assert sorted(os.listdir(tmp_path / 'out')) == sorted(names)
    log_var = np.load(tmp_path / 'out' / 'image_1_log_var.npy')
    assert log_var.shape == (3, 24, 40)
    assert log_var.dtype == np.float32
    error = np.load(tmp_path / 'out' / 'image_1_expected_error.npy')
    np.testing.assert_allclose(error, 2 * np.exp(log_var).transpose(1, 2, 0), rtol=1e-6)  # ESU is assumed
    picture = read(tmp_path / 'out' / 'image_1_expected_error.png')
    np.testing.assert_array_equal(picture, expected_error_picture(log_var, owner="step 1's SR image"))
    out, err = capsys.readouterr()
    assert '3/3' in err
    assert f'image_1.png: expects to be off by {error.mean():.1f} levels on average; map: image_1_expected_error.png' \
        in out


def test_the_recorded_loss_and_calibration_give_the_unit(tmp_path, photos):
    state_dict = build_network({'type': 'EDSRVar', **TINY}).state_dict()
    save_checkpoint(tmp_path / 'eu.pth', {'params': state_dict}, {'type': 'EDSRVar', **TINY}, 'EU', error_scale=1.5)
    assert run(photos / 'image_0.png', tmp_path / 'sr.png', tmp_path / 'eu.pth', '--uncertainty',
               '--uncertainty-limits', 0, 6, '--colormap', 'authors') == 0
    log_var, error = (np.load(tmp_path / f'sr_{name}.npy') for name in ('log_var', 'expected_error'))
    np.testing.assert_allclose(error, 1.5 * np.exp(log_var).transpose(1, 2, 0), rtol=1e-6)
    expected = expected_error_picture(log_var, 'EU', 1.5, (0, 6), 'authors')
    np.testing.assert_array_equal(read(tmp_path / 'sr_expected_error.png'), expected)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_networks_of_the_package(tmp_path, photos, capsys, scale):
    model = ['--model', f'edsr_xs_x{scale}'] * (scale != 2)  # the default
    sr = tmp_path / 'sr.png'
    assert main([str(photos / 'image_0.png'), str(sr), '--uncertainty', '--device', 'cpu', *model]) == 0
    assert read(sr).shape == (12 * scale, 20 * scale, 3)
    assert f'Note: edsr_xs_x{scale} comes with the package for first tries: a small EDSR' in capsys.readouterr().err


def test_calibrate(tmp_path, capsys):
    smooth = {name: cv2.resize(img, (120, 90)) for name, img in random_images(3, 30, 40).items()}
    hr = write_images(tmp_path / 'hr', smooth)
    target = tmp_path / 'calibrated.safetensors'
    assert main(['--calibrate', str(hr), str(target), '--model', 'edsr_xs_x2', '--device', 'cpu']) == 0
    file = load_network_file(target)
    assert file.uncertainty_loss == 'ESU'
    expected, observed = [], []  # without a border of 2 pixels
    upscaler = Upscaler(file, uncertainty=True)
    for img in smooth.values():
        rgb = cv2.cvtColor(img, cv2.COLOR_BGR2RGB)
        result = upscaler.upscale(imresize(rgb, 1 / 2))
        expected.append(result.expected_error[2:-2, 2:-2].mean())
        observed.append(np.abs(result.image[2:-2, 2:-2].astype(float) - rgb[2:-2, 2:-2]).mean())
    assert np.mean(expected) == pytest.approx(np.mean(observed), rel=1e-4)
    out = capsys.readouterr().out
    assert f'observed {np.mean(observed):.2f}; factor {file.error_scale:.3f}' in out
    assert re.search(r'relative to the expected error: [\d.]+ before, [\d.]+ after \(each photo', out)
    assert file.error_scale != 1


def test_calibrate_refuses(tmp_path, photos, model, capsys):
    cases = {(str(model),): 'exists already', ('x.png',): 'a network is written',
             ('x.pth', '--model', str(tmp_path / 'plain.pth')): 'holds a plain network',
             ('y.pth',): 'is too small; at x2 a photo needs 32 x 32'}
    save_checkpoint(tmp_path / 'plain.pth', {'params': build_network({'type': 'EDSR', **TINY}).state_dict()},
                    {'type': 'EDSR', **TINY})
    for arguments, message in cases.items():
        model_option = [] if '--model' in arguments else ['--model', str(model)]
        assert main(['--calibrate', str(photos), *arguments, *model_option, '--device', 'cpu', '--force']) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(['a.png', '--calibrate', 'hr', 'out.pth'])
    with pytest.raises(SystemExit):
        parse(['out.png'])


def test_page(tmp_path, photos, model, capsys):
    assert run(photos, tmp_path / 'new', model, '--html', '--uncertainty', '--quiet') == 0
    page = (tmp_path / 'new/image_1.html').read_text()
    assert '<title>image_1.png, upscaled</title>' in page
    assert '"label": "expected error of EDSRTwo x2, step 2"' in page
    assert len(list((tmp_path / 'new').glob('*.html'))) == 3
    (tmp_path / 'new/image_2.html').unlink()
    assert run(photos, tmp_path / 'new', model, '--html', '--uncertainty', '--resume') == 0
    assert '2 of 3 results exist already' in capsys.readouterr().out
    assert (tmp_path / 'new/image_2.html').exists()
    assert run(photos / 'image_0.png', tmp_path / 'x/one.png', model, '--html', '--quiet') == 0
    assert 'expected error' not in (tmp_path / 'x/one.html').read_text().partition('"layers"')[2].partition('<')[0]


def test_depth_grey_and_alpha(tmp_path, model):
    images = {'deep': random_images(1, 8)['image_0'].astype(np.uint16) * 257, 'grey': np.full((8, 8), 90, np.uint8),
              'deep_grey': np.full((8, 8), 9000, np.uint16), 'alpha': np.full((8, 8, 4), 50, np.uint8)}
    (tmp_path / 'in').mkdir()
    for name, img in images.items():
        cv2.imwrite(str(tmp_path / 'in' / f'{name}.png'), img)
    assert run(tmp_path / 'in', tmp_path / 'out', model) == 0
    for name, img in images.items():
        found = read(tmp_path / 'out' / f'{name}.png')
        assert found.dtype == img.dtype
        assert found.shape == (16, 16, *img.shape[2:])
    assert (read(tmp_path / 'out' / 'alpha.png')[:, :, 3] == 50).all()


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.jpg', '.webp'])
def test_icc_profile_is_kept(tmp_path, model, suffix):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    Image.new('RGB', (8, 8), (200, 90, 40)).save(tmp_path / f'x{suffix}', icc_profile=profile)
    assert run(tmp_path / f'x{suffix}', tmp_path / 'sr.png', model) == 0
    with Image.open(tmp_path / 'sr.png') as result:
        assert result.info['icc_profile'] == profile
    assert read(tmp_path / 'sr.png').shape == (16, 16, 3)


def test_icc_profile_of_16_bits(tmp_path, model):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    (tmp_path / 'x.png').write_bytes(encode_png(np.full((8, 8, 3), 9000, np.uint16), profile))
    assert run(tmp_path / 'x.png', tmp_path / 'sr.png', model) == 0
    assert read_icc_profile(tmp_path / 'sr.png') == profile
    assert read(tmp_path / 'sr.png').dtype == np.uint16


def test_icc_profile_that_does_not_fit_the_result(tmp_path, model, capsys):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    Image.new('L', (8, 8), 90).save(tmp_path / 'x.png', icc_profile=profile)
    assert run(tmp_path / 'x.png', tmp_path / 'sr.png', model) == 0
    assert read_icc_profile(tmp_path / 'sr.png') == b''
    assert "x.png': its ICC profile is for RGB images; the result, which is grey, has none." in capsys.readouterr().err


def test_corrupt_image_is_skipped(tmp_path, photos, model, capsys):
    (photos / 'image_1.png').write_bytes((photos / 'image_1.png').read_bytes()[:99])
    cv2.imwrite(str(photos / 'float.tiff'), np.zeros((8, 8, 3), np.float32))
    assert run(photos, tmp_path / 'out', model) == 1
    assert sorted(os.listdir(tmp_path / 'out')) == ['image_0.png', 'image_2.png']
    err = capsys.readouterr().err
    assert 'udl-upscale: images skipped: 2 of 4' in err
    assert re.search(r"^  '.*image_1\.png' cannot be read", err, re.MULTILINE)
    assert re.search(r"^  '.*float\.tiff'", err, re.MULTILINE)


def test_result_that_cannot_be_written(tmp_path, photos, model, capsys, monkeypatch):
    written = []

    def full(path, data):
        if written:
            raise OSError(28, 'No space left on device', str(path))
        written.append(path.name)

    monkeypatch.setattr('udl_plugin.cli.upscale.atomic_write', full)
    assert run(photos, tmp_path / 'out', model, '--uncertainty') == 2
    assert written == ['image_0_log_var.npy']  # the image comes last
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]


def test_input_is_not_replaced_through_a_link(tmp_path, photos, model, capsys):
    before = {path: path.read_bytes() for path in photos.iterdir()}
    (tmp_path / 'link').symlink_to(photos)
    for output in (tmp_path / 'link', tmp_path / 'new' / '..' / 'photos'):
        assert_error(capsys, 'is one of the images to be upscaled', photos, output, model, '--force')
    (tmp_path / 'dangling.png').symlink_to(tmp_path / 'nowhere.png')
    assert_error(capsys, r"dangling\.png' exists already", photos / 'image_0.png', tmp_path / 'dangling.png', model)
    assert {path: path.read_bytes() for path in photos.iterdir()} == before


def assert_error(capsys, message, *arguments):
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith('udl-upscale: ')
    assert err.count('\n') == 1
    assert re.search(message, err), err


def test_existing_files_are_kept(tmp_path, photos, model, capsys):
    image = photos / 'image_0.png'
    before = {path: path.read_bytes() for path in photos.iterdir()}
    for source in (photos, image):
        assert_error(capsys, 'is one of the images to be upscaled', source, source, model, '--force')
    assert {path: path.read_bytes() for path in photos.iterdir()} == before
    (tmp_path / 'sr_log_var.npy').write_bytes(b'precious')
    assert_error(capsys, r"sr_log_var\.npy' exists already", image, tmp_path / 'sr.png', model, '--uncertainty')
    assert not (tmp_path / 'sr.png').exists()
    assert run(image, tmp_path / 'sr.png', model, '--quiet') == 0
    assert_error(capsys, r"sr\.png' exists already, and it is the OUTPUT. To upscale it too, name a folder as OUTPUT",
                 image, tmp_path / 'sr.png', model)
    (tmp_path / 'results').mkdir()
    shutil.copy(tmp_path / 'sr.png', tmp_path / 'results' / f'{image.stem}.png')
    assert_error(capsys, r"\.png' exists already; choose another OUTPUT, or give --resume", image,
                 tmp_path / 'results', model)
    assert run(image, tmp_path / 'sr.png', model, '--uncertainty', '--force', '--quiet') == 0
    assert (tmp_path / 'sr_log_var.npy').read_bytes() != b'precious'
    (photos / 'image_0_expected_error.png').write_bytes(image.read_bytes())
    capsys.readouterr()
    assert_error(capsys, 'two images would be written to', photos, tmp_path / 'out', model, '--uncertainty')
    assert not (tmp_path / 'out').exists()


def test_resume(tmp_path, photos, model, capsys):
    """Keeps what is complete with all its files, makes the rest."""
    assert run(photos, tmp_path / 'out', model, '--uncertainty') == 0
    expected = {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
    (tmp_path / 'out' / 'image_1.png').unlink()  # its map is written first
    (tmp_path / 'out' / 'image_2_log_var.npy').unlink()
    (tmp_path / 'out' / 'image_2.png').write_bytes(b'of a run without --uncertainty')
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').glob('image_0*')}
    capsys.readouterr()
    assert run(photos, tmp_path / 'out', model, '--uncertainty', '--resume') == 0
    assert capsys.readouterr().out.splitlines()[0] == '--resume: 1 of 3 results exist already and are kept.'
    assert {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()} == expected
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert run(photos, tmp_path / 'out', tmp_path / 'not read.pth', '--uncertainty', '--resume') == 0
    assert capsys.readouterr().out == '--resume: 3 of 3 results exist already and are kept.\n'
    with pytest.raises(SystemExit):
        run(photos, tmp_path / 'out', model, '--resume', '--force')


def test_bad_input(tmp_path, photos, model, capsys):
    image = photos / 'image_0.png'
    assert_error(capsys, r"there is no '.*nowhere'", tmp_path / 'nowhere', tmp_path / 'out', model)
    assert_error(capsys, r"there is no file '.*nowhere\.pth'", image, tmp_path / 'out', tmp_path / 'nowhere.pth')
    assert_error(capsys, 'results are .png files', image, tmp_path / 'out.jpg', model)
    assert_error(capsys, 'is a file; a folder is needed', photos, model, model)
    assert_error(capsys, r"new\.png' is a file; a folder is needed", photos, tmp_path / 'new.png', model)
    assert_error(capsys, 'tile 8 is too small', image, tmp_path / 'out', model, '--tile', 8)
    assert_error(capsys, 'device nonsense', image, tmp_path / 'out', model, '--device', 'nonsense')
    plain = build_network({'type': 'EDSR', **TINY})
    save_checkpoint(tmp_path / 'plain.pth', {'params': plain.state_dict()}, {'type': 'EDSR', **TINY})
    assert_error(capsys, r"plain\.pth': it holds a plain network", image, tmp_path / 'out', tmp_path / 'plain.pth',
            '--uncertainty')
    image.write_bytes(b'no image')
    assert_error(capsys, r"image_0\.png' cannot be read: it is not an image", image, tmp_path / 'out', model)
    assert not (tmp_path / 'out').exists()


def test_notes(tmp_path, photos, model, capsys):
    """Notes on assumed options and on tile seams."""
    image = photos / 'image_0.png'
    network_g = {'type': 'EDSR', **TINY, 'num_block': 12}
    torch.save({'params': build_network(network_g).state_dict()}, tmp_path / 'old.pth')
    assert run(image, tmp_path / 'a', tmp_path / 'old.pth', '--tile', 64) == 0
    err = capsys.readouterr().err
    assert 'Note: it does not record res_scale' in err
    assert 'Note: tiles overlap by 16 pixels on each side, and the receptive radius of the network is 28' in err
    assert 'A tile of 128 gives the same result' in err
    assert run(image, tmp_path / 'b', tmp_path / 'old.pth', '--tile', 128) == 0
    assert 'tiles overlap' not in capsys.readouterr().err


def test_note_where_memory_is_short(tmp_path, model, capsys, monkeypatch):
    write_images(tmp_path / 'in', random_images(2, 70))
    monkeypatch.setattr('udl_plugin.inference.upscaler.available_memory', lambda: 0)
    assert run(tmp_path / 'in', tmp_path / 'out', model) == 0
    note = 'Note: memory is short; using tiles of 64 x 64 pixels, as --tile 64 does.'
    assert capsys.readouterr().err.count(note) == 1
    assert read(tmp_path / 'out' / 'image_0.png').shape == (140, 140, 3)


@pytest.mark.skipif(os.name != 'posix', reason='sends a signal')
def test_interrupt(tmp_path, model):
    write_images(tmp_path / 'many', random_images(400, 64))
    command = [sys.executable, '-m', 'udl_plugin.cli.upscale', tmp_path / 'many', tmp_path / 'out', '--model', model,
               '--device', 'cpu', '--self-ensemble']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a shell may ignore it
    for _ in range(2400):  # imports are slow on a busy machine
        if len(list((tmp_path / 'out').glob('image_*.png'))) > 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert err.splitlines()[-1] == ('udl-upscale: interrupted; the images written so far are complete; the same '
                                    'command with --resume makes the rest')
    assert 3 < len(os.listdir(tmp_path / 'out')) < 400
    assert all(name.endswith('.png') and read(tmp_path / 'out' / name).shape == (128, 128, 3)
               for name in os.listdir(tmp_path / 'out'))


def test_examples_parse():
    pages = (ROOT / 'README.md', ROOT / 'docs/convert.md', ROOT / 'docs/maps.md')
    for text in (ABOUT, *(page.read_text() for page in pages)):
        lines = re.findall(r'^ +udl-upscale (.*?)(?: +#.*)?$', text, re.MULTILINE)
        assert lines
        for line in lines:
            assert parse(line.split()).model
