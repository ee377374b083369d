"""docs/own-network.md, executed as written."""
import re
import shlex

import cv2
import torch
from conftest import ROOT

MODULES = {'udl-train': 'udl_plugin.train', 'udl-upscale': 'udl_plugin.cli.upscale',
           'udl-compare': 'udl_plugin.cli.compare', 'udl-convert': 'udl_plugin.cli.convert'}


def test_five_steps(runner):
    page = (ROOT / 'docs/own-network.md').read_text()
    files = list(zip(('mynet.py', 'mynet_step1.yml', 'mynet_step2.yml'), re.split(r'```\w*\n', page)[1::2]))
    assert len(files) == 3
    for name, text in files:
        assert f'`{name}`' in page
        (runner.folder / name).write_text(text)
    outputs = {}
    for command in re.findall(r'^    (udl-.+)', page, re.MULTILINE):
        name, *arguments = shlex.split(command)
        process = runner.run('-m', MODULES[name], *arguments)
        assert process.returncode == 0, process.stdout
        outputs[name] = process.stdout
    assert list(outputs) == list(MODULES)
    psnrs = re.findall(r'^\|.*?\| (\d\d\.\d\d)', outputs['udl-compare'], re.MULTILINE)
    bicubic, l1, udl = map(float, psnrs)
    assert min(l1, udl) > bicubic
    assert cv2.imread(str(runner.folder / 'sr.png')).shape == (512, 512, 3)
    assert (runner.folder / 'sr_uncertainty.png').exists()
    assert (runner.folder / 'results/mynet/report.html').exists()
    assert torch.load(runner.folder / 'mynet.pth')['params'].keys() >= {'head.weight', 'upsample.0.weight'}
