"""The installed BasicSR is the one that this package was written for, by syntax tree.

`basicsr_digests.json` has a digest of each module of basicsr 1.4.2, and of those modules of new-basicsr 1.0.0 (for
Python 3.13 and later) that differ from it or are new. Comments, docstrings and layout do not count.
"""
import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path

import pytest

RECORDED = json.loads(Path(__file__).with_name('basicsr_digests.json').read_text())
NOT_IN_ALL_PYTHONS = ('kind', 'type_comment', 'type_params')  # fields of syntax trees


def simplify(node):
    """A syntax tree as lists and strings that are the same in all Python versions."""
    if isinstance(node, list):
        return [simplify(one) for one in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if name not in NOT_IN_ALL_PYTHONS}
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
        fields['body'] = fields['body'][1:]
    given = {name: value for name, value in fields.items() if value not in (None, [])}
    return [type(node).__name__, *([name, simplify(value)] for name, value in given.items())]


def digest(source):
    return hashlib.sha256(json.dumps(simplify(ast.parse(source))).encode()).hexdigest()[:16]


def find_differences(folder, recorded):
    """Modules below `folder` that are missing, new or changed."""
    found = {path.relative_to(folder).as_posix(): digest(path.read_bytes()) for path in folder.rglob('*.py')}
    found.pop('version.py', None)  # has the date of the build
    return sorted(name for name in {*found, *recorded} if found.get(name) != recorded.get(name))


def test_basicsr_is_the_recorded_one():
    installed = {}
    for name in ('basicsr', 'new-basicsr'):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    assert len(installed) == 1, f'packages that overwrite each other: {installed}'
    (name, version), = installed.items()
    assert f'{name} {version}' in RECORDED
    folder = Path(importlib.util.find_spec('basicsr').origin).parent
    expected = {**RECORDED['basicsr 1.4.2'], **RECORDED[f'{name} {version}']}
    assert find_differences(folder, expected) == [], f'modules of {name} {version} with other code than recorded'


@pytest.mark.parametrize(('source', 'is_same'), [
    ("def f(x):\n    '''Doc.'''\n    # a comment\n    return (x)\n", True), ('def f(x):\n    return x + 1\n', False)])
def test_only_code_counts(tmp_path, source, is_same):
    (tmp_path / 'module.py').write_text(source)
    recorded = {'module.py': digest('def f(x): return x')}
    assert find_differences(tmp_path, recorded) == ([] if is_same else ['module.py'])


def test_missing_and_new_modules_are_differences(tmp_path):
    (tmp_path / 'new.py').write_text('')
    assert find_differences(tmp_path, {'missing.py': digest('')}) == ['missing.py', 'new.py']
