"""What pyproject.toml cannot do: installing also adds a start-up line next to the package.

Python runs the `import` lines of every `*.pth` file in site-packages at start-up. Ours waits for `basicsr` to be
imported, so that an unmodified BasicSR finds our registered names. The file belongs to the wheel: `pip uninstall`
removes it.
"""
import base64
import hashlib
import os
import zipfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

# Runs at the start of every Python process, so it imports nothing that is not loaded already, not even udl_plugin. The
# rest is done by udl_plugin/plugin.py. (No error if the checkout was moved after `pip install -e .`.)
STARTUP = """
import os, sys

class WaitForBasicSR:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == 'basicsr':
            try:
                from udl_plugin.plugin import install_import_hook
            except ImportError:
                return None
            return install_import_hook().find_spec(name, path, target)

if os.environ.get('UDL_PLUGIN_AUTOLOAD') != '0':
    sys.meta_path.insert(0, WaitForBasicSR)
"""
PTH_NAME = 'udl_plugin_autoload.pth'
PTH_LINE = f'import sys; exec({STARTUP!r}, {{}})\n'


class CompleteBuild(build_py):
    """`pip install .`: adds the start-up line in site-packages, and the folder options/ in the package."""

    def run(self):
        super().run()
        if not self.editable_mode:
            Path(self.build_lib, PTH_NAME).write_text(PTH_LINE, encoding='utf-8')
            for source, target in self.option_files().items():
                self.mkpath(os.path.dirname(target))
                self.copy_file(source, target)

    def option_files(self):
        """The option files, for --template: source to target."""
        files = [path for path in Path('options').rglob('*') if path.suffix in ('.yml', '.py', '.json')]
        return {str(path): os.path.join(self.build_lib, 'udl_plugin', path) for path in files}

    def get_outputs(self, include_bytecode=True):
        outputs = super().get_outputs(include_bytecode)
        added = [os.path.join(self.build_lib, PTH_NAME), *self.option_files().values()]
        return outputs if self.editable_mode else outputs + added


class EditableWithHook(editable_wheel):
    """`pip install -e .`: setuptools builds a wheel with a path to the checkout; adds the file to it."""

    def run(self):
        super().run()
        for wheel in Path(self.dist_dir).glob('udl_plugin-*editable*.whl'):
            add_to_wheel(wheel, PTH_NAME, PTH_LINE.encode())


def add_to_wheel(wheel, name, data):
    """Adds a file to the root of `wheel`, and to its RECORD."""
    with zipfile.ZipFile(wheel) as archive:
        files = {item: archive.read(item) for item in archive.infolist()}
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()
    finished = wheel.with_suffix('.tmp')
    with zipfile.ZipFile(finished, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
        for item, content in files.items():
            if item.filename.endswith('.dist-info/RECORD'):
                content += f'{name},sha256={digest},{len(data)}\n'.encode()
            archive.writestr(item, content)
    finished.replace(wheel)


if __name__ == '__main__':
    setup(cmdclass={'build_py': CompleteBuild, 'editable_wheel': EditableWithHook})
