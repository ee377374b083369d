"""Plain and editable install into a virtual environment: the files installed, the import hook, and uninstall."""
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import ROOT

ASK = """
import sys
assert 'torch' not in sys.modules, 'the start-up line imports too much'
from basicsr.utils.registry import ARCH_REGISTRY
print('EDSRVar' in ARCH_REGISTRY)
"""


class Environment:
    """A virtual environment that also sees the packages of the running one.

    Of their start-up lines it runs only that of setuptools, which supplies distutils to basicsr on Python 3.12.
    """

    def __init__(self, folder):
        venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
        self.python = folder / 'bin' / 'python'
        self.site = next((folder / 'lib').glob('python*/site-packages'))
        outer = Path(sysconfig.get_path('purelib'))
        (self.site / '0_outer.pth').write_text(f'{outer}\n')
        shutil.copy(outer / 'distutils-precedence.pth', self.site)

    def run(self, *command, **environment):
        return subprocess.run([self.python, *command], text=True, capture_output=True, cwd=self.site,
                              env={**os.environ, 'UDL_PLUGIN_AUTOLOAD': '1', **environment}, check=False)

    def pip(self, *command):
        result = subprocess.run([sys.executable, '-m', 'pip', '--python', self.python, *command], text=True,
                                capture_output=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr

    def files(self):
        return {path.name for path in self.site.iterdir()} - {'__pycache__'}


@pytest.fixture
def source(tmp_path):
    """A copy of the checkout, because building writes into it."""
    folder = tmp_path / 'source'
    folder.mkdir()
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'options', 'udl_plugin'):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize('options', [[], ['--editable']], ids=['plain', 'editable'])
def test_install_and_uninstall(tmp_path, source, options):
    environment = Environment(tmp_path / 'environment')
    before = environment.files()
    environment.pip('install', '--no-deps', '--no-index', '--no-build-isolation', *options, str(source))
    assert 'udl_plugin_autoload.pth' in environment.files()

    found = environment.run('-c', ASK)
    assert found.stdout.splitlines()[-1:] == ['True'], found.stderr
    template = environment.run('-m', 'udl_plugin.train', '--template', 'edsr_s_x4_step2')
    assert template.stdout.startswith('# yaml-language-server: $schema=/'), template.stderr
    assert Path(template.stdout.splitlines()[0].partition('=')[2]).is_file()
    off = environment.run('-c', 'import sys; print(sys.meta_path)', UDL_PLUGIN_AUTOLOAD='0')
    on = environment.run('-c', 'import sys; print(sys.meta_path)')
    assert 'WaitForBasicSR' in on.stdout
    assert 'WaitForBasicSR' not in off.stdout
    assert on.stderr == off.stderr == ''

    environment.pip('uninstall', '--yes', 'udl_plugin')
    assert environment.files() == before
    assert 'WaitForBasicSR' not in environment.run('-c', 'import sys; print(sys.meta_path)').stdout
