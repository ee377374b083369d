"""Paths."""
from __future__ import annotations

import os


def relative_path(path: str | os.PathLike[str], start: str | os.PathLike[str] = '.') -> str:
    """`os.path.relpath`; the absolute path where there is none: from one drive of Windows to another."""
    try:
        return os.path.relpath(path, start)
    except ValueError:
        return os.path.abspath(path)
