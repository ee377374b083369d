"""The files of the package: versions that agree, and a wheel and an sdist that contain what they should."""
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from conftest import OPTIONS, ROOT

import udl_plugin

NEEDED = ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'Makefile', 'CHANGELOG.md',
          'CITATION.cff', 'CONTRIBUTING.md', 'SECURITY.md', 'docs', 'options', 'scripts', 'tests', 'udl_plugin')


@pytest.mark.parametrize(('file', 'pattern'), [('CHANGELOG.md', r'^## (\S+)'), ('CITATION.cff', r'^version: (\S+)')])
def test_version_is_the_same_everywhere(file, pattern):
    assert re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)[1] == udl_plugin.__version__


@pytest.fixture(scope='module')
def archives(tmp_path_factory):
    """Names of files in the wheel and in the sdist, without their first folder."""
    folder = tmp_path_factory.mktemp('package')
    ignored = shutil.ignore_patterns('__pycache__', '*.egg-info')
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name, **({'ignore': ignored} if copy is shutil.copytree else {}))
    code = ('import setuptools.build_meta as b; b.build_sdist("dist"); b.build_wheel("dist")')
    built = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    wheel, sdist = next(folder.glob('dist/*.whl')), next(folder.glob('dist/*.tar.gz'))
    assert wheel.name.startswith(f'udl_plugin-{udl_plugin.__version__}-')
    with tarfile.open(sdist) as files:
        return set(zipfile.ZipFile(wheel).namelist()), {name.partition('/')[2] for name in files.getnames()}


def test_wheel(archives):
    wheel, _ = archives
    options = {f'udl_plugin/options/{path.relative_to(OPTIONS).as_posix()}' for path in OPTIONS.rglob('*')
               if path.suffix in ('.yml', '.json') or (path.suffix == '.py' and path.is_file())}
    modules = {path.relative_to(ROOT).as_posix() for pattern in ('*.py', '*.pth')
               for path in (ROOT / 'udl_plugin').rglob(pattern)}
    added = {'udl_plugin_autoload.pth', 'udl_plugin/py.typed', 'udl_plugin/inference/comparison_page.html'}
    assert {name for name in wheel if '.dist-info/' not in name} == options | modules | added
    assert any(name.endswith('.dist-info/licenses/LICENSE') for name in wheel)


def test_sdist(archives):
    _, sdist = archives
    assert sdist >= {'CHANGELOG.md', 'CITATION.cff', 'CONTRIBUTING.md', 'SECURITY.md', 'LICENSE', 'Makefile',
                     'README.md', 'docs/demo.jpg', 'options/schema/train.json', 'options/mmengine/_base_/runtime.py',
                     'scripts/demo.py', 'tests/conftest.py', 'udl_plugin/plugin.py',
                     'udl_plugin/inference/comparison_page.html'}
