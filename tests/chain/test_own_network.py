"""docs/own-network.md, executed as written."""
import re
import shlex

import cv2
import torch
import yaml
from conftest import ROOT, Runner

MODULES = {'udl-train': 'udl_plugin.train', 'udl-upscale': 'udl_plugin.cli.upscale',
           'udl-compare': 'udl_plugin.cli.compare', 'udl-convert': 'udl_plugin.cli.convert'}


def test_five_steps(tmp_path, demo_data):
    runner = Runner(tmp_path, demo_data)
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
    assert '31.7' in outputs['udl-compare']
    table = (runner.folder / 'results/mynet/table.md').read_text()
    psnrs = re.findall(r'^\|.*?\| (\d\d\.\d\d)', table, re.MULTILINE)
    bicubic, l1, udl = map(float, psnrs)
    assert min(l1, udl) > bicubic
    assert cv2.imread(str(runner.folder / 'sr.png')).shape == (512, 512, 3)
    assert (runner.folder / 'sr_expected_error.png').exists()
    assert (runner.folder / 'results/mynet/report.html').exists()
    assert torch.load(runner.folder / 'mynet.pth')['params'].keys() >= {'head.weight', 'upsample.0.weight'}


def merge(options, changes):
    for key, value in changes.items():
        if isinstance(value, dict) and key != 'pixel_opt':
            merge(options.setdefault(key, {}), value)
        else:
            options[key] = value


def test_own_loss_metric_data_set_and_model(runner):
    """The examples as written, in step 2; and a resume with the same random numbers."""
    page, title, section = (ROOT / 'docs/own-network.md').read_text().partition('## Your own loss, metric, data set')
    assert title
    code, step1, step2 = re.split(r'```\w*\n', page)[1:6:2]
    examples = re.findall(r'^```python\n(.*?)^```', section, re.MULTILINE | re.DOTALL)
    assert len(examples) == 5
    assert all(example.count('\n') <= 10 for example in examples)
    changes, = re.findall(r'^```yaml\n(.*?)^```', section, re.MULTILINE | re.DOTALL)
    (runner.folder / 'mynet.py').write_text(code)
    (runner.folder / 'mine.py').write_text('\n\n'.join(examples))
    for name, text, difference in (('step1', step1, '{}'), ('step2', step2, changes)):
        opt = yaml.safe_load(text)
        merge(opt, yaml.safe_load(difference))
        merge(opt, {'num_gpu': 0, 'train': {'total_iter': 4}, 'val': {'val_freq': 4},
                    'logger': {'print_freq': 1, 'save_checkpoint_freq': 2}})
        (runner.folder / f'{name}.yml').write_text(yaml.safe_dump(opt))
        process = runner.train(f'{name}.yml')
        assert process.returncode == 0, process.stdout
    for line in ('Dataset [NoisyPairs] - photos is built.', 'Loss [UDL] is created.', 'Model [EdgeModel] is created.',
                 'l_edge: ', '# mae: '):
        assert line in process.stdout

    folder = runner.folder / 'experiments/mynet_step2'
    before = torch.load(folder / 'models/net_g_latest.pth')['params']
    for path in ('models/net_g_latest.pth', 'models/net_g_4.pth', 'training_states/4.state'):
        (folder / path).unlink()
    process = runner.train('step2.yml', '--auto_resume')
    assert 'Resuming training from epoch: 0, iter: 2' in process.stdout
    after = torch.load(folder / 'models/net_g_latest.pth')['params']
    assert all(torch.equal(value, after[name]) for name, value in before.items())
