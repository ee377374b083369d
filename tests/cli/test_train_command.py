"""Arguments of udl-train, udl-test and the commands of mmengine; what all commands share; templates; udl-info."""
import importlib
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from conftest import OPTIONS, ROOT

import udl_plugin
from udl_plugin.cli import compare, convert, info, mm, prepare, study, templates, train, upscale
from udl_plugin.config.schema import validate_file

PARSERS = {  # command -> its arguments, parsed
    'udl-train': lambda argv: train.parse(True, argv), 'udl-test': lambda argv: train.parse(False, argv),
    'udl-prepare': prepare.parse, 'udl-convert': convert.parse, 'udl-upscale': upscale.parse,
    'udl-study': study.parse, 'udl-compare': compare.parse, 'udl-mm-train': lambda argv: mm.parse('train', argv),
    'udl-mm-test': lambda argv: mm.parse('test', argv), 'udl-info': lambda argv: info.make_parser().parse_args(argv)}

SCRIPTS = {command: (module, function) for command, module, function in
           re.findall(r'^(udl-[\w-]+) = "(.*):(.*)"$', (ROOT / 'pyproject.toml').read_text(), re.MULTILINE)}


def refused(parse, argv, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_all_commands_are_here():
    assert set(SCRIPTS) == set(PARSERS)
    for module, function in SCRIPTS.values():
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize('command', PARSERS)
def test_version_and_help(command, capsys):
    for option, text in (('--version', f'udl_plugin {udl_plugin.__version__}\n'), ('--help', f'usage: {command} ')):
        with pytest.raises(SystemExit) as stop:
            PARSERS[command]([option])
        assert stop.value.code == 0
        assert capsys.readouterr().out.startswith(text)


@pytest.mark.parametrize('command', PARSERS)
def test_help_imports_nothing_slow(command):
    """So that it takes a tenth of a second. An import of torch alone takes seconds."""
    module, function = SCRIPTS[command]
    code = (f'import sys\nfrom {module} import {function} as main\nsys.argv = [{command!r}, "--help"]\n'
            'try:\n    main()\nexcept SystemExit:\n    print(*sys.modules)')
    modules = subprocess.check_output([sys.executable, '-c', code], text=True).splitlines()[-1].split()
    assert not {'torch', 'basicsr', 'cv2', 'scipy', 'mmengine', 'matplotlib', 'pydantic'} & set(modules)


@pytest.mark.parametrize(('argv', 'opt'), [(['x.yml'], 'x.yml'), (['-opt', 'x.yml'], 'x.yml'),
                                          (['x.yml', '--force_yml', 'a=1', 'b=2'], 'x.yml'),
                                          (['-opt', 'x.yml', '--local-rank=1'], 'x.yml')])
def test_option_file(argv, opt):
    for is_train in (True, False):
        args = train.parse(is_train, argv)
        assert args.opt == opt
        assert args.force_yml == (['a=1', 'b=2'] if '--force_yml' in argv else [])


@pytest.mark.parametrize(('command', 'argv', 'message'), [
    ('udl-train', [], 'udl-train: error: name an option file: udl-train FILE.yml'),
    ('udl-test', ['a.yml', '-opt', 'b.yml'], "two option files, 'a.yml' and 'b.yml'; name one"),
    ('udl-train', ['a.yml', '--auto-resume'],
     "error: unrecognized arguments: --auto-resume (did you mean '--auto_resume'?)"),
    ('udl-train', ['a.yml', '--xyz'], 'unrecognized arguments: --xyz'),
    ('udl-upscale', ['a.png', 'b.png', '--modle=x'], "--modle (did you mean '--model'?)"),
    ('udl-prepare', ['train', '--hr', 'x', '--out', 'y', '--sclaes', '2'], "--sclaes (did you mean '--scales'?)"),
    ('udl-mm-train', ['x.py', '--workdir', 'y'], "--workdir (did you mean '--work-dir'?)"),
    ('udl-train', ['--template', 'edsr_s_x4_step3'], "no template 'edsr_s_x4_step3' (did you mean 'edsr_s_x4_"),
])
def test_wrong_arguments(command, argv, message, capsys):
    assert message in refused(PARSERS[command], argv, capsys)


@pytest.mark.parametrize('command', templates.FILES)
def test_templates(command, tmp_path, capsys):
    """Each has a title of one line of 80 columns, and its text is one of the option files, complete and valid."""
    found = templates.find_templates(command)
    pattern, _ = templates.FILES[command]
    assert sorted(found.values()) == sorted(OPTIONS.glob(pattern)), 'two files have the same name'
    with pytest.raises(SystemExit) as stop:
        PARSERS[command](['--list-templates'])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(found)
    assert all(25 < len(line) <= 80 for line in lines)
    for name, path in found.items():
        with pytest.raises(SystemExit):
            PARSERS[command](['--template', name])
        text = capsys.readouterr().out
        if command == 'udl-study':
            base = yaml.safe_load(text).get('base')
            assert base is None or (path.parent / yaml.safe_load(path.read_text())['base']).samefile(base)
        elif command != 'udl-mm-train':
            assert yaml.safe_load(text) == yaml.safe_load(path.read_text())
            assert validate_file(yaml.safe_load(text), command == 'udl-train') == []


def test_mmengine_template_is_complete(tmp_path, capsys):
    config = pytest.importorskip('mmengine.config').Config
    with pytest.raises(SystemExit):
        mm.parse('train', ['--template', 'edsr_s_x4_step1'])
    path = tmp_path / 'my_config.py'
    path.write_text(capsys.readouterr().out)
    assert config.fromfile(path)._to_lazy_dict() == \
        config.fromfile(OPTIONS / 'mmengine/edsr_s_x4_udl_step1.py')._to_lazy_dict()


@pytest.mark.parametrize('argv', [[], ['tran', 'x.py']])
def test_mm_requires_a_command(argv, capsys):
    assert mm.main(argv) == 2
    assert 'train|test CONFIG' in capsys.readouterr().err


def test_info(capsys, monkeypatch):
    assert info.main([]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines['udl_plugin'].startswith(f'{udl_plugin.__version__}, ')
    assert 'basicsr' in lines['basicsr']
    assert lines['torch'].startswith(importlib.import_module('torch').__version__)

    cuda = importlib.import_module('torch').cuda
    monkeypatch.setattr(cuda, 'is_available', lambda: True)
    monkeypatch.setattr(cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(cuda, 'get_device_properties', lambda _: SimpleNamespace(name='A card', total_memory=80 << 30))
    monkeypatch.setenv('UDL_PLUGIN_AUTOLOAD', '0')
    monkeypatch.setitem(info.PACKAGES, 'no_such_module', ('no-such-package',))
    described = dict(info.describe())
    assert described['GPU 0'] == 'A card, 80 GiB'
    assert described['start-up line'].startswith('turned off')
    assert described['no_such_module'] == 'not installed'
