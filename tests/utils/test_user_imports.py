import subprocess
import sys

import pytest
from basicsr.utils import registry as registries
from conftest import ROOT

from udl_plugin.errors import UserError
from udl_plugin.utils import user_imports
from udl_plugin.utils.user_imports import import_user_modules

ARCH = """
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

@ARCH_REGISTRY.register()
class {name}(nn.Module):
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder; what is imported and registered from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', sys.path[:])
    monkeypatch.setattr(user_imports, '_imported', [])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], '__file__', '')):
            del sys.modules[name]
    for registry in ('ARCH_REGISTRY', 'LOSS_REGISTRY'):
        names = getattr(registries, registry)._obj_map
        for name in [name for name in names if name.startswith('Own')]:
            del names[name]


def write(path, text=''):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize('name', ['own_net', 'own_net.py', 'sub/own_net.py', 'sub.own_net'])
def test_module_or_file(folder, name):
    write(folder / f'{name[:-3] if name.endswith(".py") else name.replace(".", "/")}.py', ARCH.format(name='OwnNet'))
    for _ in range(2):
        import_user_modules([name])
    assert 'OwnNet' in registries.ARCH_REGISTRY


def test_package_laid_out_like_basicsr(folder):
    write(folder / 'own_pkg/__init__.py')
    write(folder / 'own_pkg/archs/__init__.py')
    write(folder / 'own_pkg/archs/own_arch.py',
          'from own_pkg.archs.own_block import Block\n' + ARCH.format(name='OwnNet'))
    write(folder / 'own_pkg/archs/own_block.py', 'Block = 1')
    write(folder / 'own_pkg/archs/script.py', 'raise RuntimeError("not a module that registers something")')
    write(folder / 'own_pkg/losses/own_loss.py',  # a folder without __init__.py
          ARCH.format(name='OwnLoss').replace('ARCH_', 'LOSS_'))
    import_user_modules(['own_pkg'])
    assert 'OwnNet' in registries.ARCH_REGISTRY
    assert 'OwnLoss' in registries.LOSS_REGISTRY


def test_package_whose_init_is_empty(folder):
    write(folder / 'own_pkg/__init__.py')
    write(folder / 'own_pkg/own_arch.py', 'from . import own_block\n' + ARCH.format(name='OwnNet'))
    write(folder / 'own_pkg/own_block.py')
    write(folder / 'own_pkg/script.py', 'raise RuntimeError("not a module that registers something")')
    import_user_modules(['own_pkg'])
    assert 'OwnNet' in registries.ARCH_REGISTRY


@pytest.mark.parametrize('name', ['sub/own_pkg', 'sub/own_pkg/', './sub/own_pkg', '../{}/sub/own_pkg'])
def test_folder_of_a_package(folder, name):
    write(folder / 'sub/own_pkg/__init__.py', 'from .own_net import OwnNet')
    write(folder / 'sub/own_pkg/own_net.py', ARCH.format(name='OwnNet'))
    import_user_modules([name.format(folder.name)])
    assert 'OwnNet' in registries.ARCH_REGISTRY


@pytest.mark.parametrize(('name', 'message'), [
    ('own_net', "imports: there is no module 'own_net', neither in .* nor among the installed packages"),
    ('own_pkg.archs', "imports: there is no module 'own_pkg.archs'"),
    ('own/net', "imports: there is no module 'own/net'"),
    ('own_net.py', "imports: there is no file 'own_net.py'"),
    ('broken', r"imports: 'broken' cannot be imported: ZeroDivisionError: division by zero \(.*broken.py, line 2\)"),
    ('exits', "imports: 'exits' cannot be imported: SystemExit: 3"),
    ('requires', "'requires' cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
    ('json.py', "imports: 'json.py': the module name json is taken by .*json/__init__.py. Rename yours."),
    ('edsr', r"'edsr' cannot be imported: AssertionError: An object named 'EDSR' was already registered"),
])
def test_error_is_one_line(folder, name, message):
    write(folder / 'broken.py', '\n1 / 0')
    write(folder / 'exits.py', 'raise SystemExit(3)')
    write(folder / 'requires.py', 'import nowhere')
    write(folder / 'json.py')
    write(folder / 'edsr.py', ARCH.format(name='EDSR'))
    with pytest.raises(UserError, match=message) as error:
        import_user_modules([name])
    assert '\n' not in str(error.value)


def test_spawned_process_finds_the_class(folder):
    """As data-loading workers do on Windows and macOS."""
    write(folder / 'sub/own_net.py', 'class OwnNet:\n    pass')
    write(folder / 'main.py', """
import multiprocessing
from udl_plugin.utils.user_imports import import_user_modules

def found(obj):
    assert type(obj).__name__ == 'OwnNet'

if __name__ == '__main__':
    import_user_modules(['sub/own_net.py'])
    from own_net import OwnNet
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        pool.map(found, [OwnNet()])
""")
    subprocess.run([sys.executable, 'main.py'], check=True, env={'PYTHONPATH': str(ROOT)})
