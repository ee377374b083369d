"""Optional packages."""
from __future__ import annotations

import importlib
from types import ModuleType

from udl_plugin.errors import UserError


def import_optional(name: str) -> ModuleType:
    """Imports a module of the `convert` extra.

    Raises:
        UserError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs the package {name.split('.')[0]}: pip install 'udl_plugin[convert]', or, in a "
                        "checkout, pip install '.[convert]'.") from None
