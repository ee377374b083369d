"""The names that BasicSR finds: registered once, refused where taken, and told in the README."""
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


def test_again_changes_nothing():
    before = {registry: dict(iter(getattr(registries, registry))) for registry in REGISTERED}
    register()
    assert before == {registry: dict(iter(getattr(registries, registry))) for registry in REGISTERED}


FORKED = """
import os, sys
import cv2, mmengine._strategy, pydantic, scipy.stats, skimage.metrics, torchvision  # once, before the forks: quicker
failed = []
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        assert not [module for module in sys.modules if module.startswith('basicsr')]
        __import__(name)
        import basicsr.archs
        from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY
        os._exit(0 if 'EDSRVar' in ARCH_REGISTRY and 'UDLModel' in MODEL_REGISTRY else 1)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
sys.exit(f'cannot be imported first: {failed}' if failed else 0)
"""


@pytest.mark.parametrize('autoload', ['0', '1'])
def test_any_module_may_be_imported_first(autoload):
    """With the start-up line and, but for those that never need basicsr, without it."""
    names = ['.'.join(path.relative_to(ROOT).with_suffix('').parts).replace('.__init__', '')
             for path in sorted((ROOT / 'udl_plugin').rglob('*.py'))]
    assert len(names) > 15
    if autoload == '0':
        needing = ('archs', 'models', 'data.', 'datasets', 'studies', 'entry', 'train')
        names = [name for name in names if name.startswith(tuple(f'udl_plugin.{part}' for part in needing))]
    result = subprocess.run([sys.executable, '-c', FORKED, *names], capture_output=True, text=True, check=False,
                            env={**os.environ, 'PYTHONPATH': str(ROOT), 'UDL_PLUGIN_AUTOLOAD': autoload})
    assert result.returncode == 0, result.stderr


def test_taken_name_says_by_whom(monkeypatch):
    class UDL:
        pass

    monkeypatch.delitem(registries.ARCH_REGISTRY._obj_map, 'EDSRVar')
    monkeypatch.setitem(registries.LOSS_REGISTRY._obj_map, 'UDL', UDL)
    with pytest.raises(RuntimeError, match=r"'UDL'.*loss registry by .*test_register.*test_register\.py"):
        register()
    assert 'EDSRVar' not in registries.ARCH_REGISTRY  # nothing, rather than half
    monkeypatch.undo()
    register()


@pytest.mark.parametrize(('registry', 'name', 'module'), CLASSES)
def test_readme_lists_name_and_options(registry, name, module):
    row = re.search(rf'^\| `{name}` \|.*$', (ROOT / 'README.md').read_text(), re.MULTILINE)
    assert row, f'README.md has no table row for {name}'
    told = re.findall(r'`(\w+)`', row[0])
    if registry not in ('MODEL_REGISTRY', 'DATASET_REGISTRY'):  # these take the whole yml, or section
        cls = getattr(importlib.import_module(module), name)
        given = {'img', 'img2', 'log_var'} if registry == 'METRIC_REGISTRY' else set()  # by the validation
        assert sorted(told[1:]) == sorted(set(inspect.signature(cls).parameters) - given)
