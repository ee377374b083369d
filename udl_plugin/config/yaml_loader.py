"""Reads ymls: nothing in them runs, every key knows its line, and texts of the command line may override values."""
import contextlib
import re
from collections import OrderedDict
from typing import NamedTuple

import yaml

from udl_plugin.errors import UserError, did_you_mean, raise_errors
from udl_plugin.utils.plain import to_builtins

MAX_NODES = 100_000  # keys and values of a yml, those that aliases stand for included
NUMBERS = ('tag:yaml.org,2002:int', 'tag:yaml.org,2002:float')
MOST_DIGITS = 100
TEXT = 'tag:yaml.org,2002:str'
MERGE = 'tag:yaml.org,2002:merge'


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with the OrderedDicts of BasicSR's; aliases may not blow up, and are values of their own.
    """

    overrides = ()

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None and _size(node, {}, set()) > MAX_NODES:
            raise yaml.composer.ComposerError(None, None, f'its aliases stand for more than {MAX_NODES} values',
                                              node.start_mark)
        return node

    def construct_object(self, node, deep=False):
        if node.tag in NUMBERS and len(node.value) > MOST_DIGITS:
            raise yaml.constructor.ConstructorError(None, None, f'a number of {len(node.value)} characters',
                                                    node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError) as err:  # of `!!int x`, or a list as a key
            raise yaml.constructor.ConstructorError(None, None, f'{node.tag.split(":")[-1]}: {err}',
                                                    node.start_mark) from err

    def construct_document(self, node):
        data = _unshared(super().construct_document(node))
        for override in self.overrides:
            override.apply(data)
        return data


def _ordered(loader, node):
    loader.flatten_mapping(node)
    return OrderedDict(loader.construct_pairs(node))


Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _ordered)


class _ValueLoader(Loader):
    """Of an override's value, where 1e-4 is a number and none is None."""


_ValueLoader.add_implicit_resolver('tag:yaml.org,2002:float', re.compile(r'[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$'),
                                   list('-+.0123456789'))
_ValueLoader.add_implicit_resolver('tag:yaml.org,2002:null', re.compile('none$', re.IGNORECASE), list('nN'))


def make_yaml_loader(overrides=()):
    """What takes the place of `basicsr.utils.options.ordered_yaml`, whose loader runs what a yml asks for.

    Args:
        overrides (Iterable[Override]): Applied to what is loaded.

    Returns:
        tuple[type, type]: Loader and dumper.
    """
    return type('OverridingLoader', (Loader,), {'overrides': tuple(overrides)}), yaml.SafeDumper


def _size(node, sizes, above):
    """How many nodes there are, those of an alias counted wherever it stands."""
    if id(node) in above:
        raise yaml.composer.ComposerError(None, None, 'an alias stands for what it is a part of', node.start_mark)
    if id(node) not in sizes:
        above.add(id(node))
        text = len(node.value) // 100 if isinstance(node, yaml.ScalarNode) else 0
        sizes[id(node)] = 1 + text + sum(_size(child, sizes, above) for child in _children(node))
        above.discard(id(node))
    return sizes[id(node)]


def _children(node):
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _unshared(value):
    """PyYAML has one object wherever an alias stands, and upstream writes into sections."""
    if isinstance(value, OrderedDict):
        return OrderedDict((key, _unshared(item)) for key, item in value.items())
    return [_unshared(item) for item in value] if isinstance(value, list) else value


class Override(NamedTuple):
    """One text of `--force_yml`, such as train:ema_decay=0.999."""

    text: str
    keys: tuple
    value: object

    def apply(self, data):
        """Sets the value; the last key may be new.

        Raises:
            UserError: a section is missing; says which.
        """
        section = data
        for number, key in enumerate(self.keys):
            if not isinstance(section, dict):
                where = f"'{':'.join(self.keys[:number])}' is no section" if number else 'the yml has no sections'
                raise UserError(f'--force_yml {self.text}: {where}.')
            own = next((own for own in section if str(own) == key), None)
            if number == len(self.keys) - 1:
                section[key if own is None else own] = self.value
            elif own is None:
                raise UserError(f"--force_yml {self.text}: there is no section '{':'.join(self.keys[:number + 1])}'"
                                 f'{did_you_mean(key, map(str, section))}.')
            else:
                section = section[own]


def parse_override(text):
    """Reads a text such as train:ema_decay=0.999 or train:optim_g:betas=[0.9, 0.99]; nothing in it runs.

    Args:
        text (str): Keys with `:` between them, `=`, and a value as a yml has it; but 1e-4 is a number, and none is ~.

    Raises:
        UserError: says what is wrong with it.
    """
    keys, equals, value = text.partition('=')
    keys = tuple(key.strip() for key in keys.split(':'))
    if not equals or not all(keys) or not text.isprintable():
        raise UserError(f'--force_yml {text!r}: is not of the form key:key=value, such as train:ema_decay=0.999.')
    with _told(f'--force_yml {text}: the value'):
        return Override(text, keys, yaml.load(value, _ValueLoader))


class _Place(NamedTuple):
    """Where a key stands, and its own keys to theirs."""

    where: str
    keys: dict


class OptionFile:
    """A yml as it was read, with its overrides.

    Args:
        path (str): Of the yml.
        overrides (Iterable[Override]): Applied in their order.

    Attributes:
        data (OrderedDict): The content.
        problems (list[str]): Keys that stand there twice, of which YAML silently takes the last.

    Raises:
        UserError: the file cannot be read, or is no yml of sections.
    """

    def __init__(self, path, overrides=()):
        self.path, self.problems = str(path), []
        node, self.data = _load(path, make_yaml_loader(overrides)[0])
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"'{path}' is no yml of sections, such as those in options/.")
        self._top = self._place_of(node, node, ())
        for override in overrides:
            place = self._top
            for key in override.keys[:-1]:
                place = place.keys[key]
            place.keys[override.keys[-1]] = _places_of(f'--force_yml {override.text}', override.value)

    def where(self, message):
        """Where the deepest key stands that a message begins with, such as `line 12`."""
        place = self._top
        while True:
            named = [key for key in place.keys if message.startswith((f'{key}: ', f"'{key}'"))]
            if not named:
                return place.where
            key = max(named, key=len)
            place, message = place.keys[key], message[len(key) + 2:]

    def speaks_of(self, message, known=()):
        """Whether a message begins with a key of the yml, or one of `known`."""
        return any(message.startswith((f'{key}: ', f"'{key}'")) for key in (*self._top.keys, *known))

    def _place_of(self, key, node, names):
        keys, lines = {}, {}
        for child, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if child.tag == MERGE:
                for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    keys = {**self._place_of(merged, merged, names).keys, **keys}
                continue
            name, line = str(child.value), child.start_mark.line + 1
            if child.tag != TEXT:
                self.problems.append(f"{': '.join((*names, name))}: keys are texts; write '{name}'.")
            if name in lines:
                self.problems.append(f'{": ".join((*names, name))}: stands there twice, in line {lines[name]} too; '
                                     'delete one.')
            lines[name] = line
            keys[name] = self._place_of(child, value, (*names, name))
        return _Place(f'line {key.start_mark.line + 1}', keys)


def _places_of(where, value):
    keys = value.items() if isinstance(value, dict) else ()
    return _Place(where, {str(key): _places_of(where, item) for key, item in keys})


def read_yml(path):
    """The content of a yml as plain data; nothing in it runs.

    Raises:
        UserError: the file cannot be read, is no yml, or has a key twice.
    """
    node, data = _load(path, Loader)
    if isinstance(node, yaml.MappingNode):
        raise_errors(f"'{path}': {problem}" for problem in OptionFile(path).problems)
    return to_builtins(data)


def _load(path, loader_type):
    """The node and the data of a yml."""
    try:
        with open(path, encoding='utf-8') as file, _told(f"'{path}'"):
            text = file.read()
            node = loader_type(text).get_single_node()
            return node, yaml.load(text, loader_type)
    except OSError as err:
        raise UserError(f"'{path}': {err.strerror}.") from err


@contextlib.contextmanager
def _told(what):
    try:
        yield
    except UserError:
        raise
    except RecursionError as err:
        raise UserError(f'{what} is no yml: it is nested too deeply.') from err
    except yaml.MarkedYAMLError as err:
        line = '' if err.problem_mark is None else f'line {err.problem_mark.line + 1}: '
        advice = ' (only plain data is read)' if 'a constructor for the tag' in str(err.problem) else ''
        raise UserError(f'{what} is no yml: {line}{err.problem}{advice}.') from err
    except (yaml.YAMLError, ValueError) as err:  # the latter: no UTF-8
        raise UserError(f'{what} is no yml: {" ".join(str(err).split())}') from err
