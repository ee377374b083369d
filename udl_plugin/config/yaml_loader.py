"""Reads option files: plain data only, with the line of every key, and with overrides of the command line."""
from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import yaml

from udl_plugin.config.problems import KeyPath, OptionError
from udl_plugin.errors import UserError, did_you_mean, raise_errors
from udl_plugin.utils.plain import to_builtins

MERGE = 'tag:yaml.org,2002:merge'


class _ValueLoader(yaml.SafeLoader):
    """For the value of an override, where 1e-4 is a number and none is None."""


_ValueLoader.add_implicit_resolver('tag:yaml.org,2002:float', re.compile(r'[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$'),
                                   list('-+.0123456789'))
_ValueLoader.add_implicit_resolver('tag:yaml.org,2002:null', re.compile('none$', re.IGNORECASE), list('nN'))


class Override(NamedTuple):
    """One argument of `--force_yml`, such as train:ema_decay=0.999."""

    text: str
    keys: KeyPath
    value: Any

    def apply(self, data: Any) -> None:
        """Sets the value; the last key may be new.

        Raises:
            UserError: a mapping on the way is missing; says which.
        """
        for number, key in enumerate(self.keys, 1):
            if not isinstance(data, dict):
                raise UserError(f"--force_yml {self.text}: '{':'.join(self.keys[:number - 1])}' is not a mapping of "
                                'options.')
            if number == len(self.keys):
                data[key] = self.value
            elif key not in data:
                raise UserError(f"--force_yml {self.text}: there is no '{':'.join(self.keys[:number])}'"
                                f'{did_you_mean(key, data)}.')
            else:
                data = data[key]


def parse_override(text: str) -> Override:
    """Parses an override such as train:ema_decay=0.999 or train:optim_g:betas=[0.9, 0.99]. No code in it is run.

    Args:
        text: Keys joined by `:`, then `=` and a value in YAML; but 1e-4 is a number, and none is null.

    Raises:
        UserError: it has another form, or the value is not valid YAML.
    """
    keys, equals, value = text.partition('=')
    path = tuple(key.strip() for key in keys.split(':'))
    if not equals or not all(path) or not text.isprintable():
        raise UserError(f'--force_yml {text!r}: is not of the form key:key=value, such as train:ema_decay=0.999.')
    with _yaml_errors(f'--force_yml {text}: the value'):
        return Override(text, path, yaml.load(value, _ValueLoader))


class OptionFile:
    """An option file as it was read, with its overrides.

    Args:
        path: Of the file.
        overrides: Applied in this order.

    Attributes:
        path (str): Of the file.
        data (dict): The content, as builtin types.
        errors (list[OptionError]): Duplicate keys, of which YAML silently takes the last.

    Raises:
        UserError: the file cannot be read, or does not hold a mapping of options.
    """

    def __init__(self, path: str | os.PathLike, overrides: Sequence[Override] = ()):
        self.path, self.overrides = str(path), tuple(overrides)
        try:
            with open(path, encoding='utf-8') as file, _yaml_errors(f"'{path}'"):
                loader = yaml.SafeLoader(file.read())
                self._node: Any = loader.get_single_node()
                # before values are constructed, which puts merged keys among a mapping's own
                self.errors = list(_find_duplicates(self._node, ()))
                # as copies: PyYAML returns one object for all aliases of a mapping, and BasicSR writes into mappings
                self.data: Any = self._node and to_builtins(loader.construct_document(self._node))
        except OSError as err:
            raise UserError(f"'{path}': {err.strerror}.") from err
        if not isinstance(self.data, dict):
            raise UserError(f"'{path}' is not an option file: it is no mapping of options, as those in options/ are.")
        for override in overrides:
            override.apply(self.data)

    def locate(self, path: Sequence[str]) -> str:
        """Where an option, or else the mapping that should contain it, comes from: `line 12`, or `--force_yml ...`."""
        for override in reversed(self.overrides):
            if tuple(path[:len(override.keys)]) == override.keys:
                return f'--force_yml {override.text}'
        mark, node = self._node.start_mark, self._node
        for key in path:
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            found = [(child, value) for child, value in pairs if str(child.value) == key]
            if not found:
                break
            mark, node = found[-1][0].start_mark, found[-1][1]
        return f'line {mark.line + 1}'


def read_yml(path: str | os.PathLike) -> dict[str, Any]:
    """The content of an option file as builtin types.

    Raises:
        UserError: the file cannot be read, is not a mapping of options, or has a duplicate key.
    """
    option_file = OptionFile(path)
    raise_errors(f"'{path}': {error}" for error in option_file.errors)
    return option_file.data


def _find_duplicates(node: yaml.Node | None, path: KeyPath) -> Iterator[OptionError]:
    lines: dict[str, int] = {}
    for child, value in node.value if isinstance(node, yaml.MappingNode) else ():
        here = (*path, str(child.value))
        if child.tag == MERGE:
            continue
        if here[-1] in lines:
            yield OptionError(here, f'is a duplicate key, in line {lines[here[-1]]} too; delete one.')
        lines[here[-1]] = child.start_mark.line + 1
        yield from _find_duplicates(value, here)


@contextlib.contextmanager
def _yaml_errors(what: str) -> Iterator[None]:
    try:
        yield
    except RecursionError as err:
        raise UserError(f'{what} is not valid YAML: it is nested too deeply, or within itself.') from err
    except yaml.MarkedYAMLError as err:
        line = '' if err.problem_mark is None else f'line {err.problem_mark.line + 1}: '
        advice = ' (only plain data is read)' if 'a constructor for the tag' in str(err.problem) else ''
        raise UserError(f'{what} is not valid YAML: {line}{err.problem}{advice}.') from err
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as err:  # not UTF-8, or `!!int x`
        raise UserError(f'{what} is not valid YAML: {" ".join(str(err).split())}') from err
