"""Option files: plain data only, with the line of every key, and overrides that are plain data."""
import pytest
import yaml
from basicsr.utils.options import ordered_yaml
from conftest import OPTIONS

from udl_plugin.config.yaml_loader import OptionFile, parse_override, read_yml
from udl_plugin.errors import UserError
from udl_plugin.utils.plain import to_builtins

CALL = '!!python/object/apply:os.mkdir [{path}]'


def write(folder, text):
    path = folder / 'x.yml'
    path.write_text(text)
    return path


def option_file(folder, text, *overrides):
    return OptionFile(write(folder, text), [parse_override(override) for override in overrides])


@pytest.mark.parametrize('path', sorted(OPTIONS.rglob('*.yml')), ids=lambda path: path.stem)
def test_content_is_that_of_basicsr(path):
    ours, theirs = OptionFile(path), yaml.load(path.read_text(), ordered_yaml()[0])
    assert ours.data == theirs
    assert str(ours.data) == str(to_builtins(theirs))  # in equal order
    assert not ours.errors


def test_code_is_not_run(tmp_path):
    """BasicSR's loader runs it: the test would notice."""
    yaml.load(f'x: {CALL.format(path=tmp_path / "theirs")}', ordered_yaml()[0])
    assert (tmp_path / 'theirs').exists()
    path = write(tmp_path, f'name: x\nx: {CALL.format(path=tmp_path / "ours")}')
    for read in (read_yml, OptionFile):
        with pytest.raises(UserError, match=r'line 2: could not determine a constructor.* \(only plain data is read\)'):
            read(path)
    code = f'__import__("pathlib").Path("{tmp_path / "ours"}").touch()'
    assert option_file(tmp_path, 'a: 1', f'a={code}').data == {'a': code}
    with pytest.raises(UserError, match='--force_yml .* the value is not valid YAML'):
        parse_override(f'a=[{code}]]')
    assert not (tmp_path / 'ours').exists()


@pytest.mark.parametrize(('text', 'value'), [
    ('1e-4', 1e-4), ('2.5E3', 2500.0), ('!!float 1e-4', 1e-4), ('-1', -1), ('0.5', 0.5), ('"1e-4"', '1e-4'),
    ('none', None), ('None', None), ('~', None), ('', None), ('true', True), ('False', False), ('nonesuch', 'nonesuch'),
    ('[0.9, 1e-2]', [0.9, 1e-2]), ('{type: Adam, lr: 1e-3}', {'type': 'Adam', 'lr': 1e-3}), ('a=b', 'a=b'),
    ('~/x.pth', '~/x.pth'),
])
def test_value_of_an_override(text, value):
    override = parse_override(f'train: x={text}')
    assert override.keys == ('train', 'x')
    assert override.value == value
    assert type(override.value) is type(value) or isinstance(value, dict)


def test_overrides_are_applied_in_order(tmp_path):
    read = option_file(tmp_path, 'a: {b: 1}\n4: {c: 1}\n', 'a:b=2', 'a:new={x: 1}', 'a:new:x=3', '4:c=5')
    assert read.data == {'a': {'b': 2, 'new': {'x': 3}}, '4': {'c': 5}}
    assert read.locate(('a', 'new', 'x')) == '--force_yml a:new:x=3'
    assert read.locate(('a', 'new', 'y')) == '--force_yml a:new={x: 1}'
    assert read.locate(('a', 'b')) == '--force_yml a:b=2'
    assert read.locate(('a', 'c')) == 'line 1'
    assert read.locate(('4', 'c')) == '--force_yml 4:c=5'


@pytest.mark.parametrize(('override', 'message'), [
    ('trian:x=1', "--force_yml trian:x=1: there is no 'trian' .did you mean 'train'"),
    ('train:optim:lr=1', "there is no 'train:optim' .did you mean 'optim_g'"),
    ('name:x=1', "--force_yml name:x=1: 'name' is not a mapping of options"),
    ('train:total_iter', 'is not of the form key:key=value'), ('=1', 'is not of the form'), ('a::b=1', 'is not of the'),
    ('name=x\ny: 2', 'is not of the form'), ('name=*x', "the value is not valid YAML: .* undefined alias 'x'"),
    ('name=!!int x', 'the value is not valid YAML: invalid literal for int'),
])
def test_bad_override(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        option_file(tmp_path, 'name: x\ntrain: {optim_g: {lr: 1}}\n', override)


def test_lines(tmp_path):
    read = option_file(tmp_path, '# first\nname: x\n\ntrain:\n  optim_g:\n    lr: 1\n  lr: 2\n')
    assert [read.locate(key.split('.')) for key in (
        'name', 'train.optim_g.lr', 'train.optim_g.x.y', 'train.lr', 'train.x', 'train', 'scale', 'name.x')] == [
        'line 2', 'line 6', 'line 5', 'line 7', 'line 4', 'line 4', 'line 2', 'line 2']


def test_duplicate_key(tmp_path):
    read = option_file(tmp_path, 'a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n')
    assert read.errors == [(('b', 'c'), 'is a duplicate key, in line 3 too; delete one.')]
    assert read.locate(('b', 'c')) == 'line 5'
    with pytest.raises(UserError, match=r"x\.yml': b\.c: is a duplicate key"):
        read_yml(read.path)


def test_keys_become_strings(tmp_path):
    """BasicSR joins keys with strings, after it has made its folders."""
    assert option_file(tmp_path, 'a:\n  5: x\n  ~: y\n').data == {'a': {'5': 'x', 'None': 'y'}}


def test_aliases(tmp_path):
    """Merged keys are not duplicates, and what is written into one mapping is not in another."""
    read = option_file(tmp_path, 'a: &a {x: 1, y: {z: 1}}\nb: {<<: *a,\n x: 2}\nc: *a\n', 'c:y:z=5')
    assert read.data == {'a': {'x': 1, 'y': {'z': 1}}, 'b': {'x': 2, 'y': {'z': 1}}, 'c': {'x': 1, 'y': {'z': 5}}}
    assert not read.errors
    assert [read.locate(key) for key in ('by', 'byz', 'bx')] == ['line 1', 'line 1', 'line 3']


@pytest.mark.parametrize(('text', 'message'), [
    ('a: &a [*a]', 'it is nested too deeply'), ('a: &a {b: *a}', 'it is nested too deeply'),
    ('a: ' + '[' * 5000, 'it is nested too deeply'), ('a: [', 'line 1'), ('a: !!int x', 'invalid literal for int'),
    ('a: !!float ""', ''), ('a: 2024-13-45', 'month must be in'), ('? [1]\n: 2', 'line 1'),
    ('a: !nothing x', 'only plain data is read'), ('a: 1\n--- \nb: 1', 'line 2'), ('a: ' + '1' * 5000, ''),
])
def test_bad_yaml(tmp_path, text, message):
    with pytest.raises(UserError, match=rf"x\.yml' is not valid YAML: .*{message}") as caught:
        read_yml(write(tmp_path, text))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('text', ['', '- 1', 'text'])
def test_file_without_a_mapping(tmp_path, text):
    with pytest.raises(UserError, match=r"x\.yml' is not an option file"):
        OptionFile(write(tmp_path, text))


def test_unreadable_file(tmp_path):
    with pytest.raises(UserError, match='No such file'):
        read_yml(tmp_path / 'nowhere.yml')
    (tmp_path / 'x.yml').write_bytes(b'a: \xff\xfe')
    with pytest.raises(UserError, match='is not valid YAML: .*utf-8'):
        read_yml(tmp_path / 'x.yml')
