"""`complete_options` against BasicSR's `parse_options`."""
import copy
import sys
from pathlib import Path

import pytest
import torch
from basicsr.utils import options
from conftest import OPTIONS

from udl_plugin.config.completion import complete_options
from udl_plugin.config.yaml_loader import OptionFile

OF_PROCESS = ('dist', 'rank', 'world_size')  # the caller sets these
FILES = sorted(path for path in OPTIONS.rglob('*.yml') if path.parent.name != 'studies')


def parse(path, root, monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', str(path), *arguments])
    state = torch.get_rng_state()
    try:
        return options.parse_options(str(root), is_train=path.name.startswith('train'))[0]
    finally:
        torch.set_rng_state(state)


def assert_equal_options(path, root, monkeypatch, *arguments, **kwargs):
    """Equal values in equal order: BasicSR logs them."""
    data = OptionFile(path).data
    before = copy.deepcopy(data)
    opt = complete_options(data, str(root), path.name.startswith('train'), **kwargs)
    expected = parse(path, root, monkeypatch, *arguments)
    for key in OF_PROCESS:
        del expected[key]
    assert options.dict2str(opt) == options.dict2str(expected)
    assert opt == expected
    assert data == before


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(OPTIONS)))
def test_shipped_files(path, tmp_path, monkeypatch):
    assert_equal_options(path, tmp_path, monkeypatch)


@pytest.mark.parametrize(('arguments', 'kwargs'), [
    (['--auto_resume'], {'auto_resume': True}), (['--debug'], {'debug': True})])
@pytest.mark.parametrize(('before', 'after'), [
    ('name: ', 'name: '), ('name: ', 'name: debug_'), ('name: ', 'name: a_debug_'), ('\nval:', '\nother:'),
    ('dataroot_gt: ', 'dataroot_gt: ~/'), ('dataroot_lq: ', 'dataroot_lq: ~/'),
    ('resume_state: ~', 'resume_state: ~/x'),
    ('pretrain_network_g: ~', 'pretrain_network_g: ~/x.pth'), ('num_gpu: ', 'num_gpu: auto  # '), ('scale: ', '# ')])
def test_derived_options(before, after, arguments, kwargs, tmp_path, monkeypatch):
    text = (OPTIONS / 'demo/train_udl_step1.yml').read_text()
    assert before in text
    path = tmp_path / 'train.yml'
    path.write_text(text.replace(before, after, 1))
    assert_equal_options(path, tmp_path, monkeypatch, *arguments, **kwargs)


@pytest.mark.parametrize('data', [
    {}, {'name': 5, 'path': 3, 'datasets': [1], 'val': None, 'logger': 'x'},
    {'name': 'debug', 'path': {5: 1, 'resume_state': 2}},
    {'datasets': {'train': 3, 4: {}}},
    {'datasets': {'train': {'dataroot_gt': 4}}, 'num_gpu': None}])
def test_wrong_options_are_completed(data):
    """So that all errors can be reported at once."""
    for is_train in (True, False):
        opt = complete_options(data, 'root', is_train, debug=True)
        assert opt['is_train'] == is_train
        assert Path(opt['path']['log']).parts[:2] == ('root', 'experiments' if is_train else 'results')
