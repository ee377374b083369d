"""Errors that a user can mend: a wrong option, a missing or unfit file. Entry points print them as one line."""
import difflib
import functools
import inspect


class InputError(ValueError):
    """Something the user gave is wrong. The message names the file or the key and says what to do."""


def did_you_mean(name, known):
    """Returns ` (did you mean 'x'?)` for the nearest of `known`, or an empty string where none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ''


def refuse_unknown_options(cls):
    """Class decorator: an option that `cls.__init__` does not know is refused by name, with the nearest known one.

    BasicSR hands a yml section to the constructor as keyword arguments; Python's own TypeError for a misspelt one
    names neither the section's `type` in full nor what was meant.

    Raises (when an instance is made):
        InputError: an unknown keyword argument.
    """
    init = cls.__init__
    known = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked_init(self, *args, **kwargs):
        for name in kwargs:
            if name not in known:
                raise InputError(f"'{name}' is not an option of type: {cls.__name__}{did_you_mean(name, known)}. "
                                 f"Its options are: {', '.join(known)}.")
        init(self, *args, **kwargs)

    cls.__init__ = checked_init
    return cls
