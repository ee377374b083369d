"""Errors a user can fix: a wrong option, a missing or unsuitable file. Commands print them as one line each."""
from __future__ import annotations

import difflib
import functools
import inspect
import os
import re
import reprlib
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar('T', bound=type)
NOT_OF_USERS = re.compile(r'^<|[/\\]site-packages[/\\]')  # files of other code
NOT_IN = (os.path.dirname(__file__), os.path.dirname(os.__file__))  # we, and Python's library


class UserError(ValueError):
    """Something the user gave is wrong. The message names the file or the key and says what to do."""

    @property
    def messages(self) -> list[str]:
        """One message for each thing that is wrong."""
        return [str(self)]


class UserErrors(UserError):
    """Several errors, one line each.

    Args:
        messages: Objects whose `str` is a message, such as `udl_plugin.config.problems.OptionError`; or one string with
            a message per line.
    """

    def __init__(self, messages: str | Iterable[Any]):
        self.errors = messages.split('\n') if isinstance(messages, str) else list(messages)  # mmengine re-raises by str
        super().__init__('\n'.join(map(str, self.errors)))

    @property
    def messages(self) -> list[str]:
        return list(map(str, self.errors))


def raise_errors(errors: Iterable[Any]) -> None:
    """Raises one `UserErrors` with these errors, if there are any."""
    errors = list(errors)
    if errors:
        raise UserErrors(errors)


def truncate_repr(value: Any, limit: int = 80) -> str:
    """Returns a value of any size as a string of at most `limit` characters, for a message."""
    if isinstance(value, int) and value.bit_length() > 4 * limit:
        return f'a number of {value.bit_length()} bits'
    text = value if isinstance(value, str) else reprlib.repr(value) if isinstance(value, (list, dict)) else str(value)
    return text if len(text) < limit else f'{text[:limit - 3]}...'


def describe_exception(err: BaseException) -> str:
    """Returns type and message of an exception, and where in a user's code: `KeyError: 'x' (mynet.py, line 3)`."""
    message = f'{type(err).__name__}: {" ".join(str(err).split())}'
    frames = [frame for frame in traceback.extract_tb(err.__traceback__)
              if not NOT_OF_USERS.search(frame.filename) and not frame.filename.startswith(NOT_IN)]
    return f'{message} ({frames[-1].filename}, line {frames[-1].lineno})' if frames else message


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """Returns ` (did you mean 'x'?)` for the nearest of `known`, or an empty string if none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ''


def lookup_class(registry: Any, name: Any, where: str = '') -> Any:
    """Returns the class or function registered as `name` in one of BasicSR's registries.

    Args:
        registry: One of `basicsr.utils.registry`; or a dict, of classes that a user cannot add to.
        name: The `type` in a yml.
        where: Prefix of the error message: the key of the name, such as `network_g.type: `.

    Raises:
        UserError: not registered; suggests the nearest name, and how to register classes of one's own.
    """
    for registered in (str(name), f'{name}_basicsr'):  # as the registry's own `get` does
        if registered in registry:
            return registry.get(registered)
    hint = '' if isinstance(registry, Mapping) else (
        f' If it is a class of your own, decorate it with @{registry._name.upper()}_REGISTRY.register() and name its '
        'module: imports: [MODULE] in the yml, or --import MODULE.')
    raise UserError(f"{where}there is no '{name}'{did_you_mean(name, registry.keys())}.{hint}")


def check_kwargs(cls: Callable, names: Iterable[str], where: str = '') -> None:
    """Checks that `cls` accepts these keyword arguments. BasicSR passes the options of a yml that way.

    Args:
        cls: With `**kwargs` in its signature, it accepts every name that is not close to one of its own.
        names: Names of the options.
        where: Prefix of the error message: the key of the options, such as `network_g: `.

    Raises:
        UserError: an unknown name; suggests the nearest option.
    """
    for name in names:
        reason = explain_unknown_kwarg(cls, name)
        if reason:
            raise UserError(f"{where}'{name}' {reason}")


def explain_unknown_kwarg(cls: Callable, name: str, given: Iterable[str] = ()) -> str:
    """Why `cls` does not accept this keyword argument; empty if it does. `given`: those that BasicSR passes itself."""
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(cls).parameters
    named = [known for known, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    accepts_any = len(named) < len(parameters)
    named = [known for known in named if known not in given]
    if name in named or (accepts_any and name not in given and not did_you_mean(name, named)):
        return ''
    return (f'is not an option of type: {cls.__name__}{did_you_mean(name, named)}. '
            f'Its options are: {", ".join(named)}.')


def reject_unknown_kwargs(cls: T) -> T:
    """Class decorator: runs `check_kwargs` whenever an instance is created.

    Python's own TypeError for a misspelt option names neither the `type` in the yml nor the nearest option.
    """
    init = cls.__init__  # type: ignore[misc]

    @functools.wraps(init)
    def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
        check_kwargs(cls, kwargs)
        init(self, *args, **kwargs)

    cls.__init__ = checked_init  # type: ignore[misc]
    return cls
