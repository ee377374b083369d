"""The command `udl-info`: versions and paths, for a bug report."""
from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import udl_plugin
from udl_plugin.cli.common import Parser

ABOUT = 'Prints versions and paths of udl_plugin, BasicSR, PyTorch, CUDA and GPUs, for a bug report.'
# module -> packages that provide it
PACKAGES = {'basicsr': ('basicsr', 'new-basicsr'), 'torchvision': ('torchvision',),
            'cv2': ('opencv-python', 'opencv-python-headless'), 'numpy': ('numpy',), 'lmdb': ('lmdb',),
            'mmengine': ('mmengine', 'onedl-mmengine'), 'spandrel': ('spandrel',), 'safetensors': ('safetensors',),
            'onnxruntime': ('onnxruntime',), 'huggingface_hub': ('huggingface_hub',)}
STARTUP_FILE = 'udl_plugin_autoload.pth'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status 0, whatever is missing."""
    make_parser().parse_args(argv)
    for name, value in describe():
        print(f'{name:15} {value}', flush=True)
    return 0


def make_parser() -> Parser:
    return Parser('udl-info', ABOUT)


def describe() -> Iterator[tuple[str, str]]:
    """Yields names and values of what the command prints."""
    yield 'udl_plugin', f'{udl_plugin.__version__}, {Path(udl_plugin.__file__).parent}'
    yield 'start-up line', _describe_startup()
    yield 'Python', f'{platform.python_version()}, {sys.executable}'
    yield 'system', platform.platform()
    for module, packages in PACKAGES.items():
        yield module, _describe_package(module, packages)
    try:
        import torch
    except Exception as err:  # such as a missing library of the system
        yield 'torch', f'cannot be imported: {" ".join(str(err).split())}'
        return
    yield 'torch', f'{torch.__version__}, {Path(torch.__file__).parent}'
    yield 'CUDA, cuDNN', f'{torch.version.cuda or "none"}, {torch.backends.cudnn.version() or "none"}'
    yield 'threads', f'{torch.get_num_threads()} of {os.cpu_count()} cores'
    if not torch.cuda.is_available():
        yield 'GPU', 'none that PyTorch can use'
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        yield f'GPU {number}', f'{properties.name}, {properties.total_memory / 2 ** 30:.0f} GiB'


def _describe_startup() -> str:
    if os.environ.get('UDL_PLUGIN_AUTOLOAD') == '0':
        return 'turned off by UDL_PLUGIN_AUTOLOAD=0'
    found = [folder for folder in sys.path if Path(folder, STARTUP_FILE).is_file()]
    return str(Path(found[0], STARTUP_FILE)) if found else \
        "none: BasicSR's own commands do not find the names of udl_plugin; install the package with pip"


def _describe_package(module: str, packages: Sequence[str]) -> str:
    found = []
    for package in packages:
        try:
            found.append(f'{package} {importlib.metadata.version(package)}')
        except importlib.metadata.PackageNotFoundError:
            continue
    spec = importlib.util.find_spec(module)
    if spec is None:
        return 'not installed'
    return f'{" and ".join(found) or "of unknown version"}, {Path(spec.origin or module).parent}'


if __name__ == '__main__':
    sys.exit(main())
