"""What our commands share: how they end, how they show progress, what they take for a number or a path."""
import signal
import sys

from tqdm import tqdm

from udl_plugin.errors import UserError
from udl_plugin.utils.parallel import INTERRUPTS


def run_command(name, args, function, interrupted):
    """Calls `function(args)` as the command `name`, with `args.progress` to show progress, unless `args.quiet`.

    `interrupted` is what to say after Ctrl-C of what was done until then.

    Returns:
        int: Exit status: what the function returned; 2 for bad input, 130 after Ctrl-C, each with a line on stderr.
    """
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')  # for names of files that the terminal cannot show
    for number in INTERRUPTS:  # all end as with Ctrl-C, cleanly; but not what nohup has ignored
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    args.progress = Progress(args.quiet)
    try:
        return function(args)
    except UserError as err:
        message, status = err, 2
    except OSError as err:
        message, status = f"'{err.filename}': {err.strerror}" if err.filename else str(err), 2
    except KeyboardInterrupt:
        for number in INTERRUPTS:
            signal.signal(number, signal.SIG_IGN)  # once is enough
        message, status = f'interrupted; {interrupted}', 130
    args.progress.close()
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


def path_arg(text):
    """Type of an argument."""
    if not text or '\0' in text:
        raise ValueError
    return text


def positive_int(text):
    """Type of an argument."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


path_arg.__name__ = 'path'
positive_int.__name__ = 'whole number above 0'  # argparse: invalid ... value


def _interrupt(*_):
    raise KeyboardInterrupt


def add_reading_options(parser):
    """The options that say what is in a network's file."""
    add = parser.add_argument
    add('--param-key', metavar='KEY', help='where in the file the weights are (params_ema if there, or params)')
    add('--opt', type=path_arg, metavar='FILE.yml', help='the yml of its training, for what a file does not say itself')


def read(path, args):
    """`load_network_file` with the options above; prints what is to be known about the file on stderr."""
    from udl_plugin.checkpoints.network_file import load_network_file
    model = load_network_file(path, args.param_key, read_network_g(args.opt) if args.opt else None)
    for note in model.notes:
        print(f'Note: {note}', file=sys.stderr)
    return model


def read_network_g(path):
    """The section `network_g` of a yml."""
    from udl_plugin.config.yaml_loader import read_yml
    try:
        section = read_yml(path)
    except UserError as err:
        raise UserError(f'--opt: {err}') from err
    section = section.get('network_g') if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise UserError(f"--opt: '{path}' has no section network_g.")
    return section
