"""The package requires what it imports."""
import ast
import re
import sys
from importlib.metadata import packages_distributions

import pytest
from conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip('tomli', reason='Python below 3.11 has no tomllib')

# imported package -> the distribution that we require, where another one may be installed instead, or contains it
ALTERNATIVES = {
    'cv2': 'opencv-python', 'mmengine': 'mmengine', 'pydantic_core': 'pydantic', 'tensorboard': 'tb-nightly'}


def normalize(name):
    return name.lower().replace('_', '-')


def imported_packages():
    for path in (ROOT / 'udl_plugin').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            yield from (name.split('.')[0] for name in names)


def test_imported_packages_are_required():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    lines = [*project['dependencies'], *(line for extra in project['optional-dependencies'].values() for line in extra)]
    required = {normalize(re.match(r'[\w-]+', line)[0]) for line in lines}
    distributions = packages_distributions()
    for package in set(imported_packages()) - set(sys.stdlib_module_names) - {'udl_plugin'}:
        providers = {normalize(name) for name in distributions.get(package, [package])}
        providers |= {ALTERNATIVES[package]} if package in ALTERNATIVES else set()
        assert providers & required, f'{package} is imported, but pyproject.toml requires none of {providers}'
