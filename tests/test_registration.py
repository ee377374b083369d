"""The names that BasicSR finds: registered, refused if taken, and listed in docs/reference/names.md."""
import importlib
import inspect
import os
import re
import subprocess
import sys

import pytest
from basicsr.utils import registry as registries
from conftest import ROOT

from udl_plugin.plugin import REGISTERED, register

CLASSES = [(registry, name, module) for registry, modules in REGISTERED.items() for name, module in modules.items()]


@pytest.mark.parametrize(('registry', 'name', 'module'), CLASSES)
def test_registered(registry, name, module):
    assert getattr(registries, registry).get(name) is getattr(importlib.import_module(module), name)


def test_repeated_registration_changes_nothing():
    before = {registry: dict(iter(getattr(registries, registry))) for registry in REGISTERED}
    register()
    assert before == {registry: dict(iter(getattr(registries, registry))) for registry in REGISTERED}


FORKED = """
import importlib, os, sys
import cv2, distutils.version, lmdb, matplotlib.pyplot, mmengine._strategy, pydantic  # before the forks: faster
import scipy.stats, skimage.metrics, torch.utils.tensorboard, torchvision
failed = []
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        assert not [module for module in sys.modules if module.startswith(('basicsr', 'udl_plugin'))]
        importlib.import_module(name)
        from basicsr.utils import registry as registries
        from udl_plugin.plugin import REGISTERED
        for registry, modules in REGISTERED.items():
            for registered, module in modules.items():
                found = getattr(importlib.import_module(module), registered)
                assert getattr(registries, registry).get(registered) is found, registered
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
sys.exit(f'cannot be imported first: {failed}' if failed else 0)
"""
# what registration imports; a module outside of these folders cannot be part of a circular import
FOLDERS = ('archs', 'checkpoints', 'config', 'data', 'inference', 'losses', 'metrics', 'models', 'utils')
MODULES = ['.'.join(path.relative_to(ROOT).with_suffix('').parts).replace('.__init__', '')
           for folder in FOLDERS for path in sorted((ROOT / 'udl_plugin' / folder).glob('*.py'))]


ONE_OF_EACH_KIND = [next(iter(modules.values())) for modules in REGISTERED.values()]


@pytest.mark.parametrize(('modules', 'autoload'), [(MODULES, '0'), (ONE_OF_EACH_KIND, '1')],
                         ids=['all-without-start-up-line', 'some-with-start-up-line'])
def test_module_may_be_the_first_import(modules, autoload):
    """All names are registered then."""
    assert len(modules) >= 5
    result = subprocess.run([sys.executable, '-c', FORKED, *modules], capture_output=True, text=True, check=False,
                            env={**os.environ, 'PYTHONPATH': str(ROOT), 'UDL_PLUGIN_AUTOLOAD': autoload})
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(('module', 'heavy'), [('udl_plugin', {'torch', 'basicsr', 'numpy'}),
                                               ('udl_plugin.data.lmdb_io', {'torch', 'basicsr'})])
def test_import_is_cheap(module, heavy):
    code = f'import sys, {module}; print(*sys.modules)'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False,
                            env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert module in result.stdout.split(), result.stderr
    assert not heavy & set(result.stdout.split())


def test_conflict_names_the_other_class(monkeypatch):
    class UDL:
        pass

    monkeypatch.setitem(registries.LOSS_REGISTRY._obj_map, 'UDL', UDL)
    with pytest.raises(RuntimeError, match=r"'UDL'.* has test_registration\..*UDL of that name"):
        register()


@pytest.mark.parametrize(('registry', 'name', 'module'), CLASSES)
def test_page_lists_name_and_options(registry, name, module):
    row = re.search(rf'^\| `{name}` \|.*$', (ROOT / 'docs/reference/names.md').read_text(), re.MULTILINE)
    assert row, f'docs/reference/names.md has no table row for {name}'
    listed = re.findall(r'`(\w+)`', row[0])
    if registry not in ('MODEL_REGISTRY', 'DATASET_REGISTRY'):  # these take all options of the yml, or of its dataset
        cls = getattr(importlib.import_module(module), name)
        given = {'img', 'img2', 'log_var'} if registry == 'METRIC_REGISTRY' else set()  # passed by the validation
        assert sorted(listed[1:]) == sorted(set(inspect.signature(cls).parameters) - given)
