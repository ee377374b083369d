"""Errors of options as data: the path of the key and a message. Line numbers are looked up when they are printed."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from udl_plugin.errors import UserError, UserErrors

if TYPE_CHECKING:
    from udl_plugin.config.yaml_loader import OptionFile

KeyPath = tuple[str, ...]  # ('train', 'optim_g', 'lr')


class OptionError(NamedTuple):
    """What is wrong with one option. As a string: `train.optim_g.lr: expected a number, got ...`.

    Attributes:
        path: Its keys, from the top of the option file.
        message: Without the keys. Says what is wrong and what to write instead.
    """

    path: KeyPath
    message: str

    def __str__(self) -> str:
        return f'{".".join(self.path)}: {self.message}'


class ErrorCollector:
    """Collects errors, without those that only follow from an earlier one.

    Args:
        errors: Errors that are known already.

    Attributes:
        errors: OptionErrors, and messages of `UserError`s that name no option.
    """

    def __init__(self, errors: Iterable[Any] = ()):
        self.errors: list[Any] = []
        self.extend(errors)

    def extend(self, errors: Iterable[Any]) -> None:
        """Adds errors, but none of an option that is wrong already, or is in a mapping that is."""
        for error in errors:
            if error not in self.errors and not self.has_error_at(*getattr(error, 'path', ())):
                self.errors.append(error)

    def has_error_at(self, *path: str) -> bool:
        """Whether this option, or a mapping that contains it, is wrong."""
        return any(path[:len(wrong)] == wrong for wrong in self._get_paths())

    def has_error_within(self, *path: str) -> bool:
        """Whether this option, or one below it, is wrong."""
        return any(wrong[:len(path)] == path for wrong in self._get_paths())

    def _get_paths(self) -> list[KeyPath]:
        return [error.path for error in self.errors if isinstance(error, OptionError)]

    def check(self, function: Callable[..., Iterable[Any] | None], *args: Any,
              requires: Iterable[KeyPath] = ()) -> None:
        """Calls a check and collects the errors that it yields or raises.

        Args:
            function: Called with `args`.
            requires: Options without which it makes no sense; it is skipped if one of them is wrong.
        """
        if any(self.has_error_at(*path) for path in requires):
            return
        found: list[Any] = []
        try:
            for error in function(*args) or ():
                found.append(error)
        except UserError as err:
            found += get_errors(err)
        except Exception:
            if not self.errors:
                raise  # otherwise it is caused by an error that is reported already
        self.extend(found)


def get_errors(err: UserError) -> list[Any]:
    """The errors in a `UserErrors`; the message of any other `UserError`."""
    return list(err.errors) if isinstance(err, UserErrors) else err.messages


@contextlib.contextmanager
def errors_at(*path: str) -> Iterator[None]:
    """Turns the `UserError`s of the block into errors of the option at `path`."""
    try:
        yield
    except UserError as err:
        key = f'{".".join(path)}: '
        raise UserErrors([error if isinstance(error, OptionError) else OptionError(path, str(error).removeprefix(key))
                          for error in get_errors(err)]) from err.__cause__


def format_errors(errors: Iterable[Any], option_file: OptionFile | None = None) -> str:
    """Errors as text: one on a line of its own, several as a list that is sorted by lines.

    Args:
        errors: OptionErrors, which are given their line, and anything else that `str` turns into a message.
        option_file: Where the options come from; None: no lines are known.
    """
    errors = list(errors)
    if option_file is None or not any(isinstance(error, OptionError) for error in errors):
        return '\n  '.join(map(str, errors))
    located = [(option_file.locate(error.path) if isinstance(error, OptionError) else '', error) for error in errors]
    if len(located) == 1:
        return f'{option_file.path}, {located[0][0]}: {located[0][1]}'
    located.sort(key=lambda one: int(one[0][5:]) if one[0].startswith('line ') else 0)
    return '\n  '.join([f'{option_file.path}: {len(located)} problems:',
                        *(f'{where}: {error}' if where else str(error) for where, error in located)])


def get_section(data: Any, *keys: str) -> Mapping[str, Any]:
    """The mapping at the end of these keys; an empty one if there is none."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data if isinstance(data, Mapping) else {}
