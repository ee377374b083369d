"""What the package imports is what it requires."""
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


# imported package -> required distribution, where others may be installed in its place or it is a part of it
TWINS = {'cv2': 'opencv-python', 'mmengine': 'mmengine', 'pydantic_core': 'pydantic', 'tensorboard': 'tb-nightly'}


def imported_packages():
    for path in (ROOT / 'udl_plugin').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            yield from (name.split('.')[0] for name in names)


def test_imported_packages_are_required():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    lines = [*project['dependencies'], *(line for lines in project['optional-dependencies'].values() for line in lines)]
    required = {re.match(r'[\w-]+', line)[0].lower().replace('_', '-') for line in lines}
    distributions = packages_distributions()
    for package in set(imported_packages()) - set(sys.stdlib_module_names) - {'udl_plugin'}:
        providers = {name.lower().replace('_', '-') for name in distributions.get(package, [package])}
        providers |= {TWINS[package]} if package in TWINS else set()
        assert providers & required, f'{package} is imported, and none of {providers} is required'
