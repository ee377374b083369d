"""Checkpoints of a user's own network in every command. It returns a dict, pads by itself, and has odd options."""
import json
import sys

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import random_images, study_config, write_images

import udl_plugin
from udl_plugin.archs.build import build_network
from udl_plugin.archs.wrapping import wrapped_config
from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.cli import compare, convert, prepare, study, upscale
from udl_plugin.inference import cost
from udl_plugin.utils import user_imports

MODULE = """
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

@ARCH_REGISTRY.register()
class OwnSmallNet(nn.Module):
    def __init__(self, channels=(4, 8), drop_path_rate=0.1, kinds=None, upscale=2):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, channels[0], 3, 1, 1), nn.Conv2d(*channels, 3, 1, 1))
        self.up = nn.Sequential(nn.Conv2d(channels[1], 3 * upscale**2, 3, 1, 1), nn.PixelShuffle(upscale))

    def forward(self, x):
        features = self.body(x)
        return {'features': features, 'sr': self.up(features)}
"""
BASE = {'type': 'OwnSmallNet', 'channels': [4, 6], 'drop_path_rate': 0.2, 'kinds': [['a'], ['b', 'c']], 'upscale': 2}
IMPORT = ['--import', 'own_small_net.py']


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: the network's module, checkpoints of both steps, images. Afterwards all is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', sys.path[:])
    monkeypatch.setattr(user_imports, '_imported', [])
    monkeypatch.setattr(ARCH_REGISTRY, '_obj_map', dict(ARCH_REGISTRY._obj_map))
    monkeypatch.delitem(sys.modules, 'own_small_net', raising=False)
    (tmp_path / 'own_small_net.py').write_text(MODULE)
    user_imports.import_user_modules(['own_small_net.py'])
    for step in (1, 2):
        network_g = wrapped_config(f'step {step}', BASE)
        state_dict = build_network(network_g).state_dict()
        save_checkpoint(f'step{step}.pth', {'params': state_dict}, network_g, 'ESU')
        torch.save({'params': state_dict}, f'unrecorded{step}.pth')
    for kind, size in (('GTmod2', 48), ('LRbicx2', 24)):
        write_images(tmp_path / 'bench' / kind, random_images(2, size))
        write_images(tmp_path / f'{kind}.lmdb', random_images(3, size))
    (tmp_path / 'own.yml').write_text(yaml.safe_dump({'imports': ['own_small_net.py'], 'network_g': BASE}))
    return tmp_path


def forget():
    """As in a new process, in which a command imports the network itself."""
    ARCH_REGISTRY._obj_map.pop('OwnSmallNet')
    sys.modules.pop('own_small_net')
    user_imports._imported.clear()


FROM_FILE = pytest.mark.parametrize(('prefix', 'options'), [('step', IMPORT), ('unrecorded', ['--opt', 'own.yml'])])


@FROM_FILE
def test_upscale(folder, prefix, options):
    forget()
    image = str(next((folder / 'bench/LRbicx2').iterdir()))
    assert upscale.main([image, 'sr.png', '--model', f'{prefix}2.pth', '--uncertainty', *options]) == 0
    assert cv2.imread('sr.png').shape == (48, 48, 3)
    assert np.load('sr_log_var.npy').shape == (3, 48, 48)
    assert upscale.main([image, 'plain.png', '--model', f'{prefix}2.pth', *options]) == 0
    assert np.array_equal(cv2.imread('plain.png'), cv2.imread('sr.png'))


@FROM_FILE
@pytest.mark.parametrize('output', ['out.pth', 'out.onnx', 'out/'])
def test_convert(folder, prefix, options, output):
    forget()
    assert convert.main([f'{prefix}2.pth', output, *options]) == 0
    if output == 'out.onnx':
        import onnxruntime
        session = onnxruntime.InferenceSession(output)
        assert [one.name for one in session.get_outputs()] == ['sr']
        assert session.run(None, {'lq': np.zeros((1, 3, 5, 9), np.float32)})[0].shape == (1, 3, 10, 18)
    elif output == 'out/':
        card = (folder / 'out/README.md').read_text()
        assert 'import own_small_net  # registers OwnSmallNet; its folder has to be in sys.path\n' in card
        assert udl_plugin.from_pretrained('out').network_g == wrapped_config('step 2', BASE)
        forget()
        with pytest.raises(udl_plugin.UserError, match=r"'out': .*'OwnSmallNet'.* trained with imports: "
                                                       r"\['own_small_net.py'\]; pass those that you trust with"):
            udl_plugin.from_pretrained('out')
    else:
        content = torch.load(output)
        assert content['network_g'] == BASE
        build_network(BASE).load_state_dict(content['params'])


@FROM_FILE
def test_prepare_uncertainty(folder, prefix, options):
    forget()
    assert prepare.main(['uncertainty', '--model', f'{prefix}1.pth', '--data', 'GTmod2.lmdb', 'LRbicx2.lmdb',
                         '--out', 'maps.lmdb', '--workers', '1', *options]) == 0
    assert (folder / 'maps.lmdb/data.mdb').exists()


@pytest.mark.parametrize(('inputs', 'options'), [
    (['A=step1.pth', 'B=step2.pth'], IMPORT),
    (['A=unrecorded1.pth', 'unrecorded2.pth'], ['--opt', 'own.yml']),
    (['step1.pth', 'B=unrecorded2.pth'], ['--opt', 'B=own.yml']),
])
def test_compare(folder, inputs, options, monkeypatch):
    forget()
    monkeypatch.setattr(cost, 'peak_memory', lambda *_: None)  # a new process for each network
    assert compare.main([*inputs, '--sets', 'bench', '--box', '0', '0', '8', '8', '--uncertainty', *options]) == 0
    scores = (folder / 'results/compare/scores.csv').read_text()
    assert all(text.partition('=')[0].removesuffix('.pth') in scores for text in inputs)


def test_compare_with_an_unknown_label(folder, capsys):
    assert compare.main(['A=step1.pth', '--sets', 'bench', '--opt', 'C=own.yml']) == 2
    assert "--opt C=...: there is no network 'C'; the labels are: A." in capsys.readouterr().err


def test_study(folder):
    """The workers import the file and the module that `imports` names, before they cache maps, train and score."""
    (folder / 'own_small_helper.py').write_text('')
    step = {**study_config()['steps'][0], 'total_iter': 2}
    train_set = {**study_config()['datasets']['train'], 'dataroot_gt': 'GTmod2.lmdb', 'dataroot_lq': 'LRbicx2.lmdb'}
    network = {key: value for key, value in BASE.items() if key != 'upscale'}
    variants = {'UDL': [{'type': 'ESU'}, {'pixel_opt': {'type': 'UDL'}, 'cached_maps': True}]}
    (folder / 'own_study.yml').write_text(yaml.safe_dump(study_config(
        name='own_study', imports=['own_small_net.py', 'own_small_helper'], baseline='UDL', variants=variants,
        networks={'own': network}, steps=[step, step], datasets={'train': train_set}, benchmarks={'bench': 'bench'},
        val={'benchmark': 'bench', 'val_freq': 2})))
    forget()
    assert study.main(['own_study.yml', '--quiet']) == 0
    results = folder / 'results/own_study'
    scores = json.loads((results / 'scores/own_x2_ESU_then_UDL-cached_maps=True_seed0.json').read_text())
    assert len(scores['scores']['bench']) == 2
    run = yaml.safe_load((results / 'options/own_x2_ESU_seed0.yml').read_text())
    assert run['imports'] == ['../../own_small_net.py', 'own_small_helper']
    assert sys.modules.pop('own_small_helper').__file__ == str(folder / 'own_small_helper.py')
