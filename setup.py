"""What pyproject.toml cannot say: installing also drops a start-up line next to the package.

Python runs the `import` lines of every `*.pth` file in site-packages at start-up. Ours puts the import hook of
`udl_plugin/autoload.py` in place, which is how an unmodified BasicSR finds our registered names. The file belongs to
the wheel, so `pip uninstall` takes it away again.
"""
import base64
import hashlib
import os
import zipfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

PTH_NAME = 'udl_plugin_autoload.pth'  # sorts behind setuptools' '__editable__*.pth', which makes the package importable
PTH_LINE = 'import udl_plugin.autoload; udl_plugin.autoload.start()\n'


class BuildWithHook(build_py):
    """`pip install .`: what lies in the root of the build folder lands in site-packages."""

    def run(self):
        super().run()
        if not self.editable_mode:
            Path(self.build_lib, PTH_NAME).write_text(PTH_LINE)

    def get_outputs(self, include_bytecode=True):
        outputs = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, os.path.join(self.build_lib, PTH_NAME)]


class EditableWithHook(editable_wheel):
    """`pip install -e .`: setuptools builds a wheel of links; the file is added to it, and to its list of files."""

    def run(self):
        super().run()
        for wheel in Path(self.dist_dir).glob('udl_plugin-*.whl'):
            add_to_wheel(wheel, PTH_NAME, PTH_LINE.encode())


def add_to_wheel(wheel, name, data):
    """Adds one file to the root of `wheel` and a line for it to its RECORD."""
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


setup(cmdclass={'build_py': BuildWithHook, 'editable_wheel': EditableWithHook})
