"""Optional packages."""
from __future__ import annotations

import importlib
from types import ModuleType

from udl_plugin.errors import UserError


def import_optional(name: str, extra: str = 'convert') -> ModuleType:
    """Imports a module of an optional package.

    Args:
        name: Of the module.
        extra: Of `pyproject.toml`, which has the package.

    Raises:
        UserError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs the package {name.split('.')[0]}: pip install 'udl_plugin[{extra}]', or, in a "
                        f"checkout, pip install '.[{extra}]'.") from None
