"""The package's layout: which folder may import which, what lies in its root, and that public functions have types."""
import ast

import pytest
from conftest import ROOT

PACKAGE = ROOT / 'udl_plugin'
# a folder imports only from folders of later lines, and from itself; CONTRIBUTING.md has the same list
ORDER = [
    {'train', 'test'}, {'cli'}, {'studies', 'integrations'}, {'training'}, {'models'}, {'config', 'prepare'},
    {'inference'}, {'checkpoints'}, {'archs', 'data'}, {'losses', 'metrics', 'utils'}, {'plugin', 'errors'},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
# what finds our classes by name, and one-line modules under an earlier version's names
EXEMPT = {'__init__', 'plugin', 'autoload', 'mm', 'model_files', 'spandrel_archs', 'data/prepare', 'data/imresize'}
MODULES = sorted(path for path in PACKAGE.rglob('*.py')
                 if str(path.relative_to(PACKAGE).with_suffix('')) not in EXEMPT)


def name_of(path):
    return str(path.relative_to(PACKAGE))


def imported(path):
    """Names of the package's folders and modules of the root that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
            [f'{node.module}.{alias.name}' for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        yield from (name.split('.')[1] for name in names if name.startswith('udl_plugin.'))


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_imports_go_one_way(path):
    folder = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
    for other in imported(path):
        if other in LEVEL and other != folder:
            assert LEVEL[other] > LEVEL[folder], f'{name_of(path)}: {folder} may not import {other}'


def test_integrations_do_not_import_each_other():
    for path in (PACKAGE / 'integrations').rglob('*.py'):
        own = path.relative_to(PACKAGE / 'integrations').parts[0].removesuffix('.py')
        for other in {'mmengine', 'spandrel'} - {own}:
            assert f'udl_plugin.integrations.{other}' not in path.read_text()


def test_root_holds_few_modules():
    modules = {path.stem for path in PACKAGE.glob('*.py')}
    shims = {name for name in modules if name != '__init__' and len(ast.parse((PACKAGE / f'{name}.py').read_text()).body) == 2}
    assert modules - shims == {'__init__', 'errors', 'plugin', 'train', 'test'}


def test_tests_mirror_the_package():
    folders = {path.parent.name for path in PACKAGE.glob('*/*.py')}
    tested = {path.parent.name for path in (ROOT / 'tests').glob('*/*.py')}
    assert folders <= tested
    assert tested - folders == {'chain', 'soak', 'fuzz'}


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_public_functions_have_types(path):
    def check(scope, where):
        for node in scope.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
                check(node, f'{where}:{node.name}')
            if not isinstance(node, ast.FunctionDef) or (node.name.startswith('_') and node.name != '__init__'):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            missing = [one.arg for one in arguments if one.annotation is None and one.arg not in ('self', 'cls')]
            assert not missing, f'{where}:{node.name}: no type for {", ".join(missing)}'
            assert node.returns is not None or node.name == '__init__', f'{where}:{node.name}: no return type'

    check(ast.parse(path.read_text()), name_of(path))
