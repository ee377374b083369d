"""The names that BasicSR finds: registered once, refused where taken, and told in the README."""
import importlib
import inspect
import re

import pytest
from basicsr.utils import registry as registries
from conftest import ROOT

from udl_plugin.register import NAMES, register

CLASSES = [(registry, name, module) for registry, modules in NAMES.items() for name, module in modules.items()]


@pytest.mark.parametrize(('registry', 'name', 'module'), CLASSES)
def test_registered(registry, name, module):
    assert getattr(registries, registry).get(name) is getattr(importlib.import_module(module), name)


def test_again_changes_nothing():
    before = {registry: dict(iter(getattr(registries, registry))) for registry in NAMES}
    register()
    assert before == {registry: dict(iter(getattr(registries, registry))) for registry in NAMES}


def test_taken_name_says_by_whom(monkeypatch):
    class UDL:
        pass

    monkeypatch.delitem(registries.ARCH_REGISTRY._obj_map, 'EDSRVar')
    monkeypatch.setitem(registries.LOSS_REGISTRY._obj_map, 'UDL', UDL)
    with pytest.raises(RuntimeError, match=r"'UDL'.*LOSS_REGISTRY by .*test_register.*test_register\.py"):
        register()
    assert 'EDSRVar' not in registries.ARCH_REGISTRY  # nothing, rather than half
    monkeypatch.undo()
    register()


@pytest.mark.parametrize(('registry', 'name', 'module'), CLASSES)
def test_readme_lists_name_and_options(registry, name, module):
    row = re.search(rf'^\| `{name}` \|.*$', (ROOT / 'README.md').read_text(), re.MULTILINE)
    assert row, f'README.md has no table row for {name}'
    told = re.findall(r'`(\w+)`', row[0])
    if registry != 'MODEL_REGISTRY':  # the model takes the whole yml
        cls = getattr(importlib.import_module(module), name)
        assert sorted(told[1:]) == sorted(inspect.signature(cls).parameters)
