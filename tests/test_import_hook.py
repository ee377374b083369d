"""The import hook, with fake packages: fast, and each in a Python process of its own without site-packages."""
import os
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT

START = runpy.run_path(ROOT / 'setup.py')['PTH_LINE']
NEW_TORCHVISION = {
    'torchvision/__init__.py': '',
    'torchvision/transforms/__init__.py': 'from . import functional',
    'torchvision/transforms/functional.py': 'def rgb_to_grayscale(): return "new"',
}
OLD_TORCHVISION = {
    **NEW_TORCHVISION,
    'torchvision/transforms/functional_tensor.py': 'def rgb_to_grayscale(): return "old"',
}
BASICSR = {'basicsr/__init__.py': 'from torchvision.transforms.functional_tensor import rgb_to_grayscale as grey'}
# at the end of each basicsr/__init__.py; the real function needs the real BasicSR
REPORT_REGISTRATION = """
import sys
if 'udl_plugin.plugin' in sys.modules:
    sys.modules['udl_plugin.plugin'].register = lambda: print('registered')
"""


@pytest.fixture
def python(tmp_path):
    """Runs code with only the standard library, our checkout and the given files; `register` prints that it is called.
    """
    def run(code, files, **environment):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + REPORT_REGISTRATION * (name == 'basicsr/__init__.py'))
        environment = {'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}', 'UDL_PLUGIN_AUTOLOAD': '1', **environment}
        return subprocess.run([sys.executable, '-S', '-c', code], cwd=tmp_path, text=True, capture_output=True,
                              env={**os.environ, **environment}, check=False)
    return run


def test_registers_after_basicsr_and_not_before(python):
    result = python(START + 'print("started")\nimport basicsr\nprint(basicsr.grey())', {**NEW_TORCHVISION, **BASICSR})
    assert result.stdout.split() == ['started', 'registered', 'new'], result.stderr


def test_submodule_and_reload(python):
    files = {**NEW_TORCHVISION, **BASICSR, 'basicsr/utils.py': ''}
    result = python(START * 2 + 'import basicsr.utils, importlib\nimportlib.reload(basicsr)', files)
    assert result.stdout.split() == ['registered', 'registered'], result.stderr


def test_supplied_module_is_removed_afterwards(python):
    code = START + ('import basicsr, sys, torchvision.transforms\n'
                    'assert not hasattr(torchvision.transforms, "functional_tensor")\n'
                    'assert not [f for f in sys.meta_path if "FunctionalTensor" in type(f).__name__]\n'
                    'import torchvision.transforms.functional_tensor')
    result = python(code, {**NEW_TORCHVISION, **BASICSR})
    assert result.stdout.split() == ['registered']
    assert "ModuleNotFoundError: No module named 'torchvision.transforms.functional_tensor'" in result.stderr


def test_not_visible_before_basicsr(python):
    result = python(START + 'import torchvision.transforms.functional_tensor', NEW_TORCHVISION)
    assert 'ModuleNotFoundError' in result.stderr


def test_existing_module_is_used_and_kept(python):
    code = START + ('import basicsr, torchvision.transforms.functional_tensor as kept\n'
                    'print(basicsr.grey(), kept.rgb_to_grayscale())')
    result = python(code, {**OLD_TORCHVISION, **BASICSR})
    assert result.stdout.split() == ['registered', 'old', 'old'], result.stderr


def test_failed_import_leaves_nothing_and_can_be_repeated(python):
    files = {**NEW_TORCHVISION, 'basicsr/__init__.py':
             'import torchvision.transforms.functional_tensor\nimport os\nif "FAIL" in os.environ: raise OSError("no")'}
    code = START + ('import sys, os\n'
                    'try:\n    import basicsr\nexcept OSError:\n    print("failed")\n'
                    'assert "torchvision.transforms.functional_tensor" not in sys.modules\n'
                    'del os.environ["FAIL"]\nimport basicsr')
    result = python(code, files, FAIL='1')
    assert result.stdout.split() == ['failed', 'registered'], result.stderr


def test_without_torchvision(python):
    result = python(START + 'import basicsr', BASICSR)
    assert result.stdout == ''
    assert "No module named 'torchvision'" in result.stderr
    result = python(START + 'import basicsr', {'basicsr/__init__.py': ''})
    assert result.stdout.split() == ['registered'], result.stderr


def test_without_basicsr(python):
    result = python(START + 'print("works")\nimport basicsr', {})
    assert result.stdout.split() == ['works']
    assert "No module named 'basicsr'" in result.stderr


def test_turned_off(python):
    result = python(START + 'import basicsr', {**OLD_TORCHVISION, **BASICSR}, UDL_PLUGIN_AUTOLOAD='0')
    assert result.returncode == 0, result.stderr
    assert result.stdout == ''


def test_start_up_line_imports_nothing(python):
    code = 'import os, sys\nbefore = set(sys.modules)\n' + START + 'print(sorted(set(sys.modules) - before))'
    result = python(code, {})
    assert result.stdout.strip() == '[]', result.stderr


def test_package_that_was_moved_away(python):
    result = python(START + 'import basicsr\nprint("works")', {'basicsr/__init__.py': ''}, PYTHONPATH='.')
    assert result.stdout.split() == ['works'], result.stderr


def test_reloaded_hook_and_a_finder_that_asks_all_finders(python):
    """No endless recursion between them."""
    code = START + """
import importlib, udl_plugin.plugin
udl_plugin.plugin.install_import_hook()
importlib.reload(udl_plugin.plugin).install_import_hook()

class AsksAll:
    searching = False
    def find_spec(self, name, path=None, target=None):
        if name == 'basicsr' and not self.searching:
            self.searching = True
            return next(filter(None, (finder.find_spec(name, path, target) for finder in sys.meta_path)), None)

sys.meta_path.insert(0, AsksAll())
import basicsr
"""
    result = python(code, {**NEW_TORCHVISION, **BASICSR})
    assert result.stdout.split() == ['registered'], result.stderr
