"""Imports the modules in which users register their own networks, losses, data sets, metrics and models."""
from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from udl_plugin.errors import UserError, describe_exception, truncate_repr

# folders of packages that are laid out like BasicSR, such as HAT, and how the modules end that register something
FOLDERS = {'archs': '_arch', 'data': '_dataset', 'losses': '_loss', 'metrics': '', 'models': '_model'}

_imported: list[str] = []  # in this process

IMPORT_HELP = '''module, package or .py file that registers classes of your own, imported first (repeatable); `imports:
[MODULE]` in a yml does the same'''


def get_imports(options: Mapping[str, Any]) -> list[str]:
    """Returns `imports` of an option file.

    Raises:
        UserError: not a list of names.
    """
    names = options.get('imports') or []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f'imports: {truncate_repr(names)} must be a list of modules, packages or .py files: '
                        f'[{names if isinstance(names, str) else "mynet"}].')
    return names


def import_user_modules(names: Iterable[str], where: str = 'imports') -> None:
    """Imports modules, so that what they register in BasicSR's registries can be named in a yml.

    Args:
        names: Each a module or package, searched in the current folder first, or the path of a `.py` file or of a
            package's folder. Of a package, modules with the endings of `FOLDERS`, such as `mynet_arch`, are imported
            too, from the package itself and from its folders of these names.
        where: Prefix of error messages: the option that gave the names.

    Raises:
        UserError: a module does not exist, or raises an error; names it, and the line.
    """
    for name in names:
        try:
            _import(name)
            if name not in _imported:
                _imported.append(name)
        except UserError as err:
            raise UserError(f'{where}: {err}') from err
        except (Exception, SystemExit) as err:
            raise UserError(f"{where}: '{name}' cannot be imported: {describe_exception(err)}.") from err


def get_imported() -> list[str]:
    """Returns the names that were imported in this process, for a process that it starts, or a checkpoint."""
    return list(_imported)


def is_path(name: str) -> bool:
    """Whether a name is the path of a file or of a package's folder, not a module to be searched."""
    return name.endswith('.py') or '/' in name or os.sep in name


def _import(name: str) -> None:
    is_file, is_folder = name.endswith('.py'), is_path(name) and os.path.isdir(name)
    if is_file and not Path(name).is_file():
        raise UserError(f"there is no file '{name}' (seen from {os.path.abspath('.')}).")
    folder = os.path.abspath('' if not is_path(name) else os.path.dirname(os.path.abspath(name)))
    if folder not in sys.path:
        sys.path.insert(0, folder)  # also for processes that are spawned: they import what they are sent by name
    importlib.invalidate_caches()
    module_name = Path(name).stem if is_file else os.path.basename(os.path.abspath(name)) if is_folder else name
    if not is_file and not _exists(module_name):
        raise UserError(f"there is no module '{name}', neither in {folder} nor among the installed packages. Write the "
                        'name of a module or package, or the path of a .py file or of a package.')
    module = importlib.import_module(module_name)
    found = os.path.dirname(module.__file__ or '') if is_folder else module.__file__ or ''
    if (is_file or is_folder) and not os.path.samefile(found or '.', name):
        raise UserError(f"'{name}': the module name {module_name} is taken by {module.__file__}. Rename yours.")
    if hasattr(module, '__path__'):
        _import_submodules(module, tuple(filter(None, FOLDERS.values())))
        for subfolder, ending in FOLDERS.items():
            if _exists(f'{module_name}.{subfolder}'):
                _import_submodules(importlib.import_module(f'{module_name}.{subfolder}'), (ending,))


def _import_submodules(package: ModuleType, endings: tuple[str, ...]) -> None:
    for submodule in pkgutil.iter_modules(getattr(package, '__path__', ())):
        if submodule.name.endswith(endings):
            importlib.import_module(f'{package.__name__}.{submodule.name}')


def _exists(name: str) -> bool:
    if name in sys.modules:
        return True
    parent = name.rpartition('.')[0]
    if parent and not _exists(parent):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a name such as `a/b`, or of a half-imported module
        return False
