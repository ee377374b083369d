"""Optional packages."""
import importlib

from udl_plugin.errors import UserError


def import_optional(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs the package {name.split('.')[0]}: pip install 'udl_plugin[convert]', or, in a "
                         "checkout, pip install '.[convert]'.") from None
