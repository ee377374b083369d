import torch

from udl_plugin.plugin import register


def test_registration_warms_up(monkeypatch):
    sizes = {}
    for name in ('exp', 'log', 'sqrt'):
        monkeypatch.setattr(torch, name, lambda x, name=name: sizes.update({name: x.numel()}))
    register()
    assert sizes == {'exp': 1, 'log': 1, 'sqrt': 1}  # PyTorch splits no tensor of one element among threads
