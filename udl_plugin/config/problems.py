"""Errors of options: where, and what to do."""
import re
from typing import NamedTuple

from udl_plugin.config.value_types import NUMBER
from udl_plugin.errors import UserError, truncate_repr


class ErrorCollector:
    """What is wrong, each thing once, and without what only follows from it.

    Args:
        problems (list[Problem]): Known ones.
    """

    def __init__(self, problems=()):
        self.messages = [problem.message for problem in problems]
        self.places = [problem.place for problem in problems]

    def blames(self, *places):
        """Whether something is wrong at one of these places itself."""
        return any(place in self.places for place in places)

    def blames_within(self, section):
        """Whether something is wrong there, or below."""
        return any(place == section or place.startswith(f'{section}: ') for place in self.places)

    def check(self, check, *args, reads=()):
        """Calls a check and takes what it yields, raises or returns for its problems.

        Args:
            check (Callable): Called with `args`.
            reads (Iterable[str]): Where it cannot do without a right value; it is left out where one is wrong.
        """
        if self.blames(*reads):
            return
        found = []
        try:
            found.extend(check(*args) or ())
        except UserError as err:
            found.extend(err.messages)
        except Exception:
            if not self.messages:
                raise
            return  # it stumbled over what is told already
        for message in found:
            if message not in self.messages and not any(message.startswith(f'{place}: ') for place in self.places):
                self.messages.append(message)


class OptionError(NamedTuple):
    """What is wrong with an option: where, such as `train: optim_g: lr`, and the whole message, which begins so."""

    place: str
    message: str


def wrong_value(place, value, what):
    """The problem of a value that is not what it should be."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        number = value.strip()
        number = f'!!float {number}' if re.search('[eE]', number) else number
        return OptionError(place, f"{place}: '{value}' is a text to YAML; write {number}.")
    if what == 'true or false' and str(value).lower() in ('true', 'false'):
        return OptionError(place, f"{place}: '{value}' is a text to YAML; write {value.lower()}.")
    text = truncate_repr(value)
    quoted = f"; write '{text}'" if type(value) in (int, float) and 'a text' in what else ''
    return OptionError(place, f'{place}: {text}: must be {what}{quoted}.')


def missing_section(place):
    return OptionError(place, f'{place}: is missing, or not a section.')


def get_section(data, key):
    """`data[key]` if it is a section, otherwise an empty one."""
    section = data.get(key) if isinstance(data, dict) else None
    return section if isinstance(section, dict) else {}
