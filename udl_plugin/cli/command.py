"""What our commands share: how they end, how they show progress, what they take for a number or a path."""
import signal
import sys

from tqdm import tqdm

from udl_plugin.data.parallel import INTERRUPTS
from udl_plugin.errors import InputError


def run_command(name, args, function, interrupted):
    """Calls `function(args)` as the command `name`, with `args.track` to show progress, unless `args.quiet`.

    `interrupted` is what to say after Ctrl-C of what was done until then.

    Returns:
        int: Exit status: what the function returned; 2 for bad input, 130 after Ctrl-C, each with a line on stderr.
    """
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')  # for names of files that the terminal cannot show
    for number in INTERRUPTS:  # all end as with Ctrl-C, cleanly; but not what nohup has ignored
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    args.track = Progress(args.quiet)
    try:
        return function(args)
    except InputError as err:
        message, status = err, 2
    except OSError as err:
        message, status = f"'{err.filename}': {err.strerror}" if err.filename else str(err), 2
    except KeyboardInterrupt:
        for number in INTERRUPTS:
            signal.signal(number, signal.SIG_IGN)  # once is enough
        message, status = f'interrupted; {interrupted}', 130
    args.track.close()
    print(f'{name}: {message}', file=sys.stderr)
    return status


def show(title, lines, file=None):
    """Prints a title and indented lines."""
    print(title, *lines, sep='\n  ', file=file)


class Progress:
    """Shows a bar with rate and time left; unless quiet."""

    def __init__(self, quiet):
        self.quiet, self.bar = quiet, None

    def __call__(self, iterable, total, what, unit='images'):
        seconds = 0.1 if sys.stderr.isatty() else 10  # a log is not filled up
        self.bar = tqdm(iterable, what, total, unit=f' {unit}', mininterval=seconds, disable=self.quiet)
        return self.bar

    def close(self):
        if self.bar is not None:
            self.bar.close()


def a_path(text):
    """Type of an argument."""
    if not text or '\0' in text:
        raise ValueError
    return text


def a_count(text):
    """Type of an argument."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


a_path.__name__ = 'path'
a_count.__name__ = 'whole number above 0'  # argparse: invalid ... value


def _interrupt(*_):
    raise KeyboardInterrupt
