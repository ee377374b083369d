"""What reads ymls: nothing runs, nothing blows up, every key has its line, and overrides are plain data."""
import sys

import pytest
import yaml
from basicsr.utils import options
from conftest import OPTIONS

from udl_plugin.config.yaml_loader import MAX_NODES, Loader, OptionFile, make_yaml_loader, parse_override, read_yml
from udl_plugin.errors import UserError
from udl_plugin.training import run as entry

UPSTREAM = options.ordered_yaml
CALL = '!!python/object/apply:os.mkdir [{path}]'


def write(folder, text):
    path = folder / 'x.yml'
    path.write_text(text)
    return path


def document(folder, text, *overrides):
    return OptionFile(write(folder, text), [parse_override(override) for override in overrides])


@pytest.mark.parametrize('path', sorted(OPTIONS.rglob('*.yml')), ids=lambda path: path.stem)
def test_the_same_as_upstreams_reader(path):
    text = path.read_text()
    ours, upstreams = (yaml.load(text, reader()[0]) for reader in (make_yaml_loader, UPSTREAM))
    assert ours == upstreams
    assert type(ours) is type(upstreams)
    assert list(ours) == list(upstreams)
    assert not OptionFile(path).problems


def test_code_in_a_yml_is_not_run(tmp_path):
    """Upstream's loader runs it: the test knows what it is about."""
    upstreams, ours = tmp_path / 'upstreams', tmp_path / 'ours'
    yaml.load(f'x: {CALL.format(path=upstreams)}', UPSTREAM()[0])
    assert upstreams.exists()
    path = write(tmp_path, f'name: x\nx: {CALL.format(path=ours)}')
    for read in (read_yml, OptionFile, lambda path: yaml.load(path.read_text(), make_yaml_loader()[0])):
        with pytest.raises((UserError, yaml.YAMLError), match='could not determine a constructor'):
            read(path)
    assert not ours.exists()


@pytest.mark.parametrize('arguments', [(), ('--no-check',)])
def test_entry_point_runs_no_code(tmp_path, monkeypatch, capsys, arguments):
    for module, pipeline in (('basicsr.train', 'train_pipeline'), ('basicsr.test', 'test_pipeline')):
        ran = tmp_path / 'ran'
        argv = ['udl', '-opt', str(write(tmp_path, f'name: x\nmanual_seed: {CALL.format(path=ran)}')), *arguments]
        monkeypatch.setattr(sys, 'argv', argv)
        monkeypatch.chdir(tmp_path)
        assert entry.run(module, pipeline) == 2
        assert "x.yml' is no yml: line 2: could not determine a constructor" in capsys.readouterr().err
        assert not ran.exists()
        assert sys.argv == argv
        assert options.ordered_yaml is UPSTREAM


def test_overrides_run_no_code(tmp_path, monkeypatch, capsys):
    """Upstream's `--force_yml` runs both halves of its argument: as code, and lists with `eval`."""
    ran = tmp_path / 'ran'
    code = f'__import__("pathlib").Path("{ran}").touch()'
    assert document(tmp_path, 'a: 1', f'a={code}').data == {'a': code}
    with pytest.raises(UserError, match='--force_yml .* the value is no yml'):
        parse_override(f'a=[{code}]]')
    path = write(tmp_path, 'name: x\nscale: 2\n')
    for override in (f'name={code}', f'scale=[{code}]', f'x"]={code};opt["name={code}',
                     f'scale={CALL.format(path=ran)}'):
        for option in ('--force_yml', '--force'):  # argparse takes what is abbreviated
            monkeypatch.setattr(sys, 'argv', ['udl-train', '-opt', str(path), option, override])
            monkeypatch.chdir(tmp_path)
            assert entry.run('basicsr.train', 'train_pipeline') == 2
            assert 'udl-train: ' in capsys.readouterr().err
    assert not ran.exists()


@pytest.mark.parametrize(('text', 'value'), [
    ('1e-4', 1e-4), ('2.5E3', 2500.0), ('!!float 1e-4', 1e-4), ('-1', -1), ('0.5', 0.5), ('"1e-4"', '1e-4'),
    ('none', None), ('None', None), ('~', None), ('', None), ('true', True), ('False', False), ('nonesuch', 'nonesuch'),
    ('[0.9, 1e-2]', [0.9, 1e-2]), ('{type: Adam, lr: 1e-3}', {'type': 'Adam', 'lr': 1e-3}), ('a=b', 'a=b'),
    ('~/x.pth', '~/x.pth'),
])
def test_value_of_an_override(text, value):
    read = parse_override(f'train: x={text}')
    assert read.keys == ('train', 'x')
    assert read.value == value
    assert type(read.value) is type(value) or isinstance(value, dict)


def test_overrides_are_applied_in_turn(tmp_path):
    read = document(tmp_path, 'a: {b: 1}\n4: {c: 1}\n', 'a:b=2', 'a:new={x: 1}', 'a:new:x=3', '4:c=5')
    assert read.data == {'a': {'b': 2, 'new': {'x': 3}}, 4: {'c': 5}}
    assert read.where('a: new: x: is wrong') == '--force_yml a:new:x=3'
    assert read.where("a: 'b' is wrong") == '--force_yml a:b=2'
    assert read.where('a: c: is missing') == 'line 1'


@pytest.mark.parametrize(('override', 'message'), [
    ('trian:x=1', "--force_yml trian:x=1: there is no section 'trian' .did you mean 'train'"),
    ('train:optim:lr=1', "there is no section 'train:optim' .did you mean 'optim_g'"),
    ('name:x=1', "--force_yml name:x=1: 'name' is no section"),
    ('train:total_iter', 'is not of the form key:key=value'), ('=1', 'is not of the form'), ('a::b=1', 'is not of the'),
    ('name=x\ny: 2', 'is not of the form'), ('name=*x', "the value is no yml: .* undefined alias 'x'"),
    ('name=!!int x', 'the value is no yml: line 1: int: '),
])
def test_bad_override(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        document(tmp_path, 'name: x\ntrain: {optim_g: {lr: 1}}\n', override)


def test_lines(tmp_path):
    read = document(tmp_path, '# first\nname: x\n\ntrain:\n  optim_g:\n    lr: 1\n  lr: 2\n')
    assert [read.where(message) for message in (
        'name: x: must', 'train: optim_g: lr: must', "train: optim_g: 'lr' is", 'train: lr: must', 'train: x: is mis',
        "train: 'lr' is", 'scale: is missing', 'train: is missing')] == [
        'line 2', 'line 6', 'line 6', 'line 7', 'line 4', 'line 7', 'line 2', 'line 4']
    assert read.speaks_of('name: x: must')
    assert not read.speaks_of("'x.png' is no image")


def test_key_that_stands_twice(tmp_path):
    read = document(tmp_path, 'a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n')
    assert read.problems == ['b: c: stands there twice, in line 3 too; delete one.']
    assert read.where(read.problems[0]) == 'line 5'
    with pytest.raises(UserError, match=r"x\.yml': b: c: stands there twice"):
        read_yml(read.path)


def test_key_that_is_no_text(tmp_path):
    """Upstream joins keys with texts, after it has made its folders."""
    read = document(tmp_path, 'a:\n  5: x\n  ~: y\n')
    assert read.problems == ["a: 5: keys are texts; write '5'.", "a: ~: keys are texts; write '~'."]


def test_aliases(tmp_path):
    """Merged keys are no doubles, and what is written into one section is not in the other."""
    read = document(tmp_path, 'a: &a {x: 1, y: {z: 1}}\nb: {<<: *a, x: 2}\nc: *a\n', 'c:y:z=5')
    assert read.data == {'a': {'x': 1, 'y': {'z': 1}}, 'b': {'x': 2, 'y': {'z': 1}}, 'c': {'x': 1, 'y': {'z': 5}}}
    assert not read.problems
    assert read.where('b: y: z: x') == 'line 1'


BOMB = '\n'.join(['a0: &a0 [x, x, x, x, x, x, x, x, x, x]'] + [
    f'a{number}: &a{number} [{", ".join([f"*a{number - 1}"] * 10)}]' for number in range(1, 12)])


@pytest.mark.parametrize(('text', 'message'), [
    (BOMB, f'no yml: line 1: its aliases stand for more than {MAX_NODES} values'),
    (BOMB.replace('[', '{<<: [').replace(']', ']}'), 'no yml: '),
    ('a: &a [*a]', 'no yml: line 1: an alias stands for what it is a part of'),
    ('a: &a {b: *a}', 'no yml: line 1: an alias stands'), ('a: ' + '[' * 5000, 'no yml: it is nested too deeply'),
    ('a: [', 'no yml: line 1'), ('a: 1\nb: !!int x', 'no yml: line 2: int: '), ('a: !!float ""', 'no yml: line 1'),
    ('a: 2024-13-45', 'no yml: line 1'), ('? [1]\n: 2', 'no yml: line 1'), ('a: !nothing x', 'only plain data is read'),
    ('a: 1\n--- \nb: 1', 'no yml: line 2'), ('a: ' + '1' * 200, 'no yml: line 1: a number of 200 characters'),
    (f'a: &a {"x" * 10_000}\nb: [{", ".join(["*a"] * 2000)}]', 'aliases stand for more'),
])
def test_bad_yml(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_yml(write(tmp_path, text))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('text', ['', '- 1', 'text'])
def test_yml_without_sections(tmp_path, text):
    with pytest.raises(UserError, match='is no yml of sections'):
        OptionFile(write(tmp_path, text))


def test_unreadable_file(tmp_path):
    with pytest.raises(UserError, match='No such file'):
        read_yml(tmp_path / 'nowhere.yml')
    (tmp_path / 'x.yml').write_bytes(b'a: \xff\xfe')
    with pytest.raises(UserError, match='is no yml: .*utf-8'):
        read_yml(tmp_path / 'x.yml')


def test_the_loader_is_a_safe_one():
    assert issubclass(Loader, yaml.SafeLoader)
    assert not any('python' in str(tag) for tag in Loader.yaml_constructors)
