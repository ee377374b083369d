"""The command udl-convert. tests/checkpoints tests what it writes."""
import os
import re
import types

import huggingface_hub
import pytest
import torch
import yaml
from conftest import ROOT, TINY

from udl_plugin.archs.build import build_network
from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.cli.convert import ABOUT, main, parse

NETWORK_G = {'type': 'EDSRTwo', **TINY, 'res_scale': 0.1, 'rgb_mean': [0, 0, 0]}
pytestmark = pytest.mark.usefixtures('seed')


@pytest.fixture
def step2(tmp_path):
    state_dict = build_network(NETWORK_G).state_dict()
    state_dict['var_net.var_conv.4.weight'].mul_(0.03)  # a map as after training
    save_checkpoint(tmp_path / 'step2.pth', {'params': state_dict}, NETWORK_G, 'ESU')
    return tmp_path / 'step2.pth'


def run(*arguments):
    return main([*map(str, arguments)])


@pytest.mark.parametrize(('name', 'layout', 'network'), [
    ('plain.pth', 'plain', 'EDSR'), ('plain.safetensors', 'plain', 'EDSR'), ('all.pth', 'udl', 'EDSRTwo'),
    ('all.safetensors', 'udl', 'EDSRTwo')])
def test_printed_network_g(step2, tmp_path, capsys, name, layout, network):
    assert run(step2, tmp_path / 'out' / name, '--layout', layout) == 0
    out, err = capsys.readouterr()
    assert (tmp_path / 'out' / name).exists()
    network_g = yaml.safe_load(out[out.index('In a yml:\n') + len('In a yml:\n'):])['network_g']
    assert network_g == {**NETWORK_G, 'type': network}
    assert ('the plain network' if layout == 'plain' else 'both networks of step 2') in out
    assert err == ''
    assert run(step2, tmp_path / 'out' / name, '--layout', layout, '--force', '--quiet') == 0
    assert capsys.readouterr() == ('', '')


def test_onnx_is_checked(step2, tmp_path, capsys):
    assert run(step2, tmp_path / 'plain.onnx') == 0
    line = (r'In onnxruntime, on smooth random images .1 x 40 x 17 and 3 x 16 x 33., it differs from PyTorch by up to '
            r'\S+ of an 8-bit level in sr\.\n')
    assert re.search(line, capsys.readouterr().out)


def test_onnx_with_map(step2, tmp_path, capsys):
    assert run(step2, tmp_path / 'map.onnx', '--layout', 'udl', '--fp16') == 0
    out, err = capsys.readouterr()
    assert 'both networks of step 2' in out
    assert re.search(r'differs from PyTorch in float32 by up to \S+ of an 8-bit level in sr and \S+ % of', out)
    assert err == ''


def test_folder(step2, tmp_path, capsys):
    (tmp_path / 'x.yml').write_text(yaml.safe_dump({'network_g': NETWORK_G}))
    (tmp_path / 'scores.csv').write_text('network,benchmark,image,psnr,ssim\nA,Set5,baby,31.5,0.9\n')
    assert run(step2, f'{tmp_path}/net/', '--yml', tmp_path / 'x.yml', '--scores', tmp_path / 'scores.csv', '--license',
               'mit') == 0
    out, err = capsys.readouterr()
    assert 'Files: README.md, config.json, model.safetensors, train.yml' in out
    assert 'both networks of step 2' in out
    assert err == ''
    card = (tmp_path / 'net/README.md').read_text()
    for text in ('license: mit', '| A | Set5 | 31.5 | 0.9 |', '(train.yml)', "from_pretrained('net')"):
        assert text in card
    assert load_network_file(tmp_path / 'net').stage == 'step 2'
    assert run(step2, tmp_path / 'net') == 2  # a folder without / too
    assert "net' exists already; choose another folder, or pass --force" in capsys.readouterr().err
    assert run(step2, tmp_path / 'net', '--layout', 'plain', '--force', '--quiet') == 0
    assert capsys.readouterr() == ('', '')
    assert load_network_file(tmp_path / 'net').stage == 'plain'
    assert run(tmp_path / 'net', tmp_path / 'back.pth') == 0
    assert run(step2, tmp_path, '--force') == 2
    assert 'holds other files' in capsys.readouterr().err
    assert step2.exists()


def test_push(step2, tmp_path, capsys, monkeypatch):
    calls = []

    def upload_folder(_, repo_id, folder_path, **options):
        calls.append((repo_id, folder_path, sorted(os.listdir(folder_path))))
        return types.SimpleNamespace(commit_url='https://address')

    def create_repo(_, repo_id, private, exist_ok):
        calls.append((repo_id, private, exist_ok))
        if repo_id == 'not/mine':
            raise ConnectionError('no')

    monkeypatch.setattr(huggingface_hub.HfApi, 'create_repo', create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, 'upload_folder', upload_folder)
    assert run(step2, f'{tmp_path}/net/', '--push', 'user/name', '--private') == 0
    assert capsys.readouterr().out.endswith('\nUploaded: https://address\n')
    assert calls == [('user/name', True, True),
                     ('user/name', str(tmp_path / 'net'), ['README.md', 'config.json', 'model.safetensors'])]
    assert "from_pretrained('user/name')" in (tmp_path / 'net/README.md').read_text()
    assert run(step2, f'{tmp_path}/two/', '--push', 'not/mine', '--quiet') == 2
    assert capsys.readouterr().err == "udl-convert: 'not/mine' was not uploaded (ConnectionError: no).\n"
    assert calls[2:] == [('not/mine', None, True)]
    assert run(step2, f'{tmp_path}/three/', '--push', 'name') == 2
    assert 'USER/NAME' in capsys.readouterr().err
    assert not (tmp_path / 'three').exists()


@pytest.mark.parametrize(('arguments', 'message'), [
    (['x.pth', '--yml', 'x.yml'], '--yml is for a folder; let OUTPUT end in /'),
    (['x.pth', '--push', 'a/b'], '--push is for a folder'), (['x.pth', '--private'], '--private is for a folder'),
    (['x/', '--private'], '--private requires --push'), (['x/', '--fp16'], '--fp16 is for .onnx'),
    (['x.pth', '--fp16'], '--fp16 is for .onnx')])
def test_options_that_do_not_fit_the_output(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run('net.pth', *arguments)
    assert message in capsys.readouterr().err


def test_existing_files_are_kept(step2, tmp_path, capsys):
    (tmp_path / 'there.pth').write_bytes(b'precious')
    assert run(step2, tmp_path / 'there.pth') == 2
    assert 'there.pth\' exists already; choose another name or give --force' in capsys.readouterr().err
    assert run(step2, step2) == 2
    assert run(step2, tmp_path / 'new' / '..' / 'there.pth') == 2
    (tmp_path / 'dangling.pth').symlink_to(tmp_path / 'x.pth')
    assert run(step2, tmp_path / 'dangling.pth') == 2
    (tmp_path / 'dangling.pth').unlink()
    for arguments in ((tmp_path / 'nowhere.pth',), (step2, '--param-key', 'x'), (step2, '--opt', tmp_path / 'no.yml')):
        assert run(arguments[0], tmp_path / 'there.pth', *arguments[1:], '--force') == 2
    assert (tmp_path / 'there.pth').read_bytes() == b'precious'
    assert sorted(os.listdir(tmp_path)) == ['step2.pth', 'there.pth']


def test_opt(tmp_path, capsys):
    """--opt supplies options that an old checkpoint does not record."""
    torch.save({'params': build_network(NETWORK_G).state_dict()}, tmp_path / 'old.pth')
    assert run(tmp_path / 'old.pth', tmp_path / 'a.pth') == 0
    assert 'Note: it does not record res_scale, img_range, rgb_mean' in capsys.readouterr().err
    (tmp_path / 'x.yml').write_text(yaml.safe_dump({'name': 'x', 'network_g': NETWORK_G}))
    assert run(tmp_path / 'old.pth', tmp_path / 'b.pth', '--opt', tmp_path / 'x.yml') == 0
    assert capsys.readouterr().err == ''
    assert torch.load(tmp_path / 'b.pth')['network_g'] == {**NETWORK_G, 'type': 'EDSR'}
    for text, message in (('a: [', 'x.yml'), ('- 1', 'is not an option file'), ('network_g: 3', 'has no network_g')):
        (tmp_path / 'x.yml').write_text(text)
        assert run(tmp_path / 'old.pth', tmp_path / 'c.pth', '--opt', tmp_path / 'x.yml') == 2
        err = capsys.readouterr().err
        assert err.startswith('udl-convert: --opt:')
        assert message in err


def test_malicious_checkpoint(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'executed'),)

    torch.save({'params': Evil()}, tmp_path / 'evil.pth')
    assert run(tmp_path / 'evil.pth', tmp_path / 'out.pth') == 2
    err = capsys.readouterr().err
    assert err.startswith('udl-convert: ')
    assert 'cannot be read as a checkpoint of tensors' in err
    assert err.count('\n') == 1
    assert os.listdir(tmp_path) == ['evil.pth']


def test_empty_paths(step2):
    for arguments in ((step2, ''), ('', 'x.pth')):
        with pytest.raises(SystemExit):
            run(*arguments)


def test_examples_parse():
    for text in (ABOUT, (ROOT / 'docs/convert.md').read_text()):
        lines = re.findall(r'^ +udl-convert (.*?)(?: +#.*)?$', text, re.MULTILINE)
        assert lines
        for line in lines:
            assert parse(line.split()).output
