"""Folders to share, and what is asked of the Hugging Face Hub: faked at the functions of huggingface_hub."""
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from conftest import TINY, write_malicious
from huggingface_hub import errors

from udl_plugin import __version__
from udl_plugin.archs.build import build_network
from udl_plugin.checkpoints import pretrained
from udl_plugin.checkpoints.network_file import NetworkFile, load_network_file
from udl_plugin.checkpoints.pretrained import find_pretrained, push_to_hub, save_pretrained
from udl_plugin.errors import UserError

CONFIG = {'type': 'EDSRTwo', **TINY, 'res_scale': 0.1}
pytestmark = pytest.mark.usefixtures('seed')


@pytest.fixture
def file():
    return NetworkFile(build_network(CONFIG).state_dict(), CONFIG, uncertainty_loss='EU')


@pytest.fixture
def folder(file, tmp_path):
    save_pretrained(file, tmp_path / 'net')
    return tmp_path / 'net'


@pytest.fixture
def yml(tmp_path):
    path = tmp_path / 'x.yml'
    path.write_text(f'# mine\nname: x\npath: {{root: /home/me}}\n{yaml.safe_dump({"network_g": CONFIG})}')
    return path


def read_all(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


# ---- a folder

def test_content_of_a_folder(file, folder, tmp_path):
    assert sorted(os.listdir(folder)) == ['README.md', 'config.json', 'model.safetensors']
    assert os.listdir(tmp_path) == ['net']
    assert json.loads((folder / 'config.json').read_text()) == {
        'library_name': 'udl_plugin', 'udl_plugin_version': __version__, 'architecture': 'EDSR', 'network_g': CONFIG,
        'scale': 2, 'channels': 3, 'stage': 'step 2', 'uncertainty_loss': 'EU'}
    assert "from_pretrained('net')" in (folder / 'README.md').read_text()
    for path in (folder, folder / 'model.safetensors'):
        found = load_network_file(path)
        assert (found.network_g, found.uncertainty_loss, found.notes) == (CONFIG, 'EU', [])
        assert found.state_dict.keys() == file.state_dict.keys()
        assert all(torch.equal(value, file.state_dict[name]) for name, value in found.state_dict.items())


def test_config_is_what_counts(folder):
    """People edit it on the Hub; the weights' own copy is for a file without the folder."""
    config = json.loads((folder / 'config.json').read_text())
    changed = {**CONFIG, 'res_scale': 0.2}
    (folder / 'config.json').write_text(json.dumps({**config, 'network_g': changed, 'uncertainty_loss': 'ESU'}))
    found = load_network_file(folder)
    assert (found.network_g, found.uncertainty_loss) == (changed, 'ESU')
    (folder / 'config.json').unlink()
    assert load_network_file(folder).network_g == CONFIG


@pytest.mark.parametrize(('text', 'message'), [
    ('{', r"config\.json' cannot be read as JSON"), ('[' * 100000, r"config\.json' cannot be read as JSON"),
    ('\xff', r"config\.json' cannot be read as JSON"), ('[1]', r"config\.json' is not an object"),
    ('{"network_g": {"type": "EDSR", "num_feat": 16}}', 'num_feat: 8'),
    ('{"network_g": {"type": "OwnNet"}, "imports": ["own.py"]}', r"'OwnNet'.*trained with imports: \['own.py'\]"),
    ('{"network_g": {"type": "BasicVSR", "spynet_path": "x"}}', 'would read another file')])
def test_bad_config(folder, text, message):
    (folder / 'config.json').write_text(text, encoding='latin-1')
    with pytest.raises(UserError, match=message):
        load_network_file(folder)


def test_pickles_in_a_folder_are_not_read(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_malicious(folder / 'pytorch_model.bin')
    write_malicious(folder / 'model.pth')
    load_network_file(folder)
    (folder / 'model.safetensors').unlink()
    with pytest.raises(UserError, match=r"net' has no model\.safetensors"):
        find_pretrained(folder)
    write_malicious(folder / 'model.safetensors')
    with pytest.raises(UserError, match='cannot be read as safetensors'):
        load_network_file(find_pretrained(folder))
    assert not Path('payload').exists()


def test_existing_folders(file, folder, tmp_path, monkeypatch):
    before = read_all(folder)
    with pytest.raises(UserError, match=r"net' exists already; .* --force .in Python: force=True"):
        save_pretrained(file, folder, license='mit')
    assert read_all(folder) == before
    (folder / 'train.yml').write_text('old: 1')
    save_pretrained(file, folder, license='mit', force=True)
    assert sorted(os.listdir(folder)) == ['README.md', 'config.json', 'model.safetensors']
    assert 'license: mit' in (folder / 'README.md').read_text()
    (folder / 'thesis.tex').write_text('years')
    before = read_all(folder)
    with pytest.raises(UserError, match=r'net.* holds other files .thesis\.tex.; name a new folder'):
        save_pretrained(file, folder, force=True)
    assert read_all(folder) == before
    (tmp_path / 'empty').mkdir()
    save_pretrained(file, tmp_path / 'empty')
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    with pytest.raises(UserError, match=r"here' is the current folder; name a new folder"):
        save_pretrained(file, '.')
    (tmp_path / 'some_file').touch()
    with pytest.raises(UserError, match=r"some_file' is a file; name a folder"):
        save_pretrained(file, tmp_path / 'some_file', force=True)
    assert sorted(os.listdir(tmp_path)) == ['empty', 'here', 'net', 'some_file']


def test_nothing_incomplete_appears(file, folder, tmp_path, monkeypatch):
    before = read_all(folder)
    monkeypatch.setattr(pretrained, '_make_config', lambda _: {}['full disk'])
    for target in (folder, tmp_path / 'new'):
        with pytest.raises(KeyError):
            save_pretrained(file, target, force=True)
    assert read_all(folder) == before
    assert os.listdir(tmp_path) == ['net']


def test_option_file(file, yml, tmp_path):
    save_pretrained(file, tmp_path / 'net', yml=yml)
    assert (tmp_path / 'net/train.yml').read_bytes() == yml.read_bytes()
    assert '[train.yml](train.yml)' in (tmp_path / 'net/README.md').read_text()


@pytest.mark.parametrize(('text', 'message'), [
    (None, r"x\.yml': No such file"), ('a: [', r"x\.yml' has no network_g"), ('- 1', r"x\.yml' has no network_g"),
    ('a: 1', r"x\.yml' has no network_g"), ('\xff', r"x\.yml' has no network_g"),
    (yaml.safe_dump({'network_g': {**CONFIG, 'res_scale': 1}}),
     r"the network was trained with network_g\.res_scale: 0\.1, '.*x\.yml' has 1\. Pass the yml")])
def test_bad_option_files(file, tmp_path, text, message):
    if text is not None:
        (tmp_path / 'x.yml').write_text(text, encoding='latin-1')
    with pytest.raises(UserError, match=message):
        save_pretrained(file, tmp_path / 'net', yml=tmp_path / 'x.yml')
    assert not (tmp_path / 'net').exists()


# ---- the Hub

@pytest.fixture
def hub(monkeypatch, folder):
    """Records the calls of huggingface_hub. `snapshot` is the folder that a download returns, or an error."""
    fake = SimpleNamespace(calls=[], snapshot=folder, uploaded=None, error=None)

    def snapshot_download(*args, **options):
        fake.calls.append(('snapshot_download', args, options))
        if isinstance(fake.snapshot, Exception):
            raise fake.snapshot
        return str(fake.snapshot)

    def create_repo(self, *args, **options):
        fake.calls.append(('create_repo', args, options))
        if fake.error:
            raise fake.error

    def upload_folder(self, **options):
        fake.uploaded = read_all(options['folder_path'])
        fake.calls.append(('upload_folder', (self.library_name, self.library_version), options))
        return SimpleNamespace(commit_url='https://huggingface.co/user/name/commit/1')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, 'create_repo', create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, 'upload_folder', upload_folder)
    return fake


def test_download(hub, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_pretrained('user/na.me-1', 'v1.0') == folder
    assert hub.calls == [('snapshot_download', ('user/na.me-1',), {
        'revision': 'v1.0', 'allow_patterns': ['model.safetensors', 'config.json'], 'library_name': 'udl_plugin',
        'library_version': __version__})]
    (tmp_path / 'user').mkdir()
    folder.rename('user/name')
    assert find_pretrained('user/name') == Path('user/name')  # a folder has precedence
    assert len(hub.calls) == 1


def test_arguments_suit_the_functions_of_the_package():
    """The fakes accept anything; the real signatures must have what we pass."""
    import inspect
    for function, names in ((huggingface_hub.snapshot_download, ('revision', 'allow_patterns', 'library_name',
                                                                 'library_version')),
                            (huggingface_hub.HfApi.create_repo, ('private', 'exist_ok')),
                            (huggingface_hub.HfApi.upload_folder, ('repo_id', 'folder_path', 'allow_patterns',
                                                                   'delete_patterns', 'commit_message')),
                            (huggingface_hub.HfApi.__init__, ('library_name', 'library_version'))):
        assert set(names) <= set(inspect.signature(function).parameters)


@pytest.mark.parametrize(('name', 'message'), [
    ('nowhere', r"there is no folder 'nowhere' .seen from .*, and the Hugging Face Hub has names such as USER/NAME"),
    ('a/b/c', "there is no folder 'a/b/c'"), ('../x', "there is no folder '../x'"), ('', "'' has no model"),
    ('x.pth', "'x.pth' is a file; udl_plugin.load reads it")])
def test_names_that_are_neither_folder_nor_model(hub, tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    Path('x.pth').touch()
    with pytest.raises(UserError, match=message):
        find_pretrained(name)
    assert hub.calls == []


def test_repository_without_a_network(hub, tmp_path):
    hub.snapshot = tmp_path / 'empty'
    hub.snapshot.mkdir()
    with pytest.raises(UserError, match=r"'user/name' has no model\.safetensors: it is not a network that"):
        find_pretrained('user/name')


def test_revision_of_a_folder(folder):
    with pytest.raises(UserError, match=r"net' is a folder, which has no revisions"):
        find_pretrained(folder, 'main')


def hub_error(cls, text='401 Client Error.\nMore lines.'):
    """An error as the Hub's answers raise it; their constructor takes a response of the HTTP library."""
    err = cls.__new__(cls)
    Exception.__init__(err, text)
    return err


@pytest.mark.parametrize(('error', 'message'), [
    (hub_error(errors.RepositoryNotFoundError), 'is neither a folder here nor a model on the Hugging Face Hub; if it'),
    (hub_error(errors.GatedRepoError), 'requires your consent on its page'),
    (hub_error(errors.RevisionNotFoundError), "has no revision 'v2' on the Hugging Face Hub"),
    (errors.LocalEntryNotFoundError('long text'), 'is not in the cache, and the Hugging Face Hub cannot be reached'),
    (ConnectionError('reset\nby peer'), r'cannot be downloaded from the Hugging Face Hub .ConnectionError: reset.\.')])
def test_errors_of_a_download(hub, error, message):
    hub.snapshot = error
    with pytest.raises(UserError, match=f"'user/name' {message}") as caught:
        find_pretrained('user/name', 'v2')
    assert '\n' not in str(caught.value)


def test_push(hub, file, yml):
    assert push_to_hub(file, 'user/name', yml=yml, license='mit', private=True) == \
        'https://huggingface.co/user/name/commit/1'
    created, (name, library, options) = hub.calls
    assert created == ('create_repo', ('user/name',), {'private': True, 'exist_ok': True})
    assert (name, library) == ('upload_folder', ('udl_plugin', __version__))
    assert not Path(options.pop('folder_path')).exists()  # a temporary one
    assert options == {
        'repo_id': 'user/name', 'allow_patterns': ['model.safetensors', 'config.json', 'README.md', 'train.yml'],
        'delete_patterns': ['train.yml'], 'commit_message': 'Upload name with udl_plugin'}
    assert sorted(hub.uploaded) == ['README.md', 'config.json', 'model.safetensors', 'train.yml']
    assert b"from_pretrained('user/name')" in hub.uploaded['README.md']
    push_to_hub(file, 'user/name', commit_message='Better')
    assert hub.calls[-1][2]['commit_message'] == 'Better'
    assert hub.calls[-2][2]['private'] is None


@pytest.mark.parametrize(('error', 'login'), [
    (hub_error(errors.HfHubHTTPError), True), (errors.LocalTokenNotFoundError('no token'), True),
    (ConnectionError('no network'), False)])
def test_errors_of_an_upload(hub, file, error, login):
    hub.error = error
    with pytest.raises(UserError, match=r"'user/name' was not uploaded .\w+: [^\n]*.\.") as caught:
        push_to_hub(file, 'user/name')
    assert ('Log in with hf auth login' in str(caught.value)) == login
    assert hub.uploaded is None


def test_name_that_the_hub_does_not_have(hub, file):
    for name in ('name', 'a/b/c', '/name', 'us er/name'):
        with pytest.raises(UserError, match='is not the name of a repository on the Hugging Face Hub: USER/NAME'):
            push_to_hub(file, name)
    assert hub.calls == []


def test_missing_package(file, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    for function in (lambda: push_to_hub(file, 'user/name'), lambda: find_pretrained('user/name')):
        with pytest.raises(UserError, match=r"needs the package huggingface_hub: pip install 'udl_plugin\[hub\]'"):
            function()
