"""Errors that a user can mend: a wrong option, a missing or unfit file. Entry points print them as one line."""
import difflib
import functools
import inspect
import reprlib


class UserError(ValueError):
    """Something the user gave is wrong. The message names the file or the key and says what to do.

    Attributes:
        messages (list[str]): One for each thing that is wrong.
    """

    @property
    def messages(self):
        return [str(self)]


class UserErrors(UserError):
    """One or several of these, a line each."""

    def __init__(self, messages):
        messages = messages.split('\n') if isinstance(messages, str) else list(messages)  # mmengine makes it anew
        super().__init__('\n'.join(messages))
        self._messages = messages

    @property
    def messages(self):
        return self._messages


def raise_errors(messages):
    """Raises one `UserErrors` with these messages, if there are any."""
    messages = list(messages)
    if messages:
        raise UserErrors(messages)


def truncate_repr(value, most=80):
    """A value of any size as a text for a message."""
    if isinstance(value, int) and value.bit_length() > 4 * most:
        return f'a number of {value.bit_length()} bits'
    text = value if isinstance(value, str) else reprlib.repr(value) if isinstance(value, (list, dict)) else str(value)
    return text if len(text) < most else f'{text[:most - 3]}...'


def did_you_mean(name, known):
    """Returns ` (did you mean 'x'?)` for the nearest of `known`, or an empty string where none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ''


def lookup_class(registry, name, where=''):
    """The class that a registry of BasicSR has under `name`.

    Args:
        registry (Registry): One of `basicsr.utils.registry`.
        name (str): As a yml has it under `type`.
        where (str): Where it stands, such as `network_g: type: `.

    Raises:
        UserError: none; says what may have been meant.
    """
    for registered in (str(name), f'{name}_basicsr'):  # the registry's own second try
        if registered in registry:
            return registry.get(registered)
    raise UserError(f"{where}there is no '{name}'{did_you_mean(name, registry.keys())}.")


def check_kwargs(cls, names, where='', given=()):
    """Refuses names that `cls` does not take as keyword arguments. BasicSR hands it a yml section that way.

    Args:
        cls (type): Its signature tells the options; with `**kwargs` it takes all that are not near to one of them.
        names (Iterable[str]): Keys of the section.
        where (str): Where they stand, such as `network_g: `.
        given (Iterable[str]): Arguments that BasicSR gives itself, and that are no options.

    Raises:
        UserError: an unknown name; says which and what may have been meant.
    """
    parameters = inspect.signature(cls).parameters
    named = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    takes_all = len(named) < len(parameters)
    named = [name for name in named if name not in given]
    for name in names:
        if name not in named and not (takes_all and name not in given and not did_you_mean(name, named)):
            raise UserError(f"{where}'{name}' is not an option of type: {cls.__name__}"
                             f"{did_you_mean(name, named)}. Its options are: {', '.join(named)}.")


def reject_unknown_kwargs(cls):
    """Class decorator: `check_option_names` whenever an instance is made, whoever makes it.

    Python's own TypeError for a misspelt option names neither the section's `type` in full nor what was meant.
    """
    init = cls.__init__

    @functools.wraps(init)
    def checked_init(self, *args, **kwargs):
        check_kwargs(cls, kwargs)
        init(self, *args, **kwargs)

    cls.__init__ = checked_init
    return cls
