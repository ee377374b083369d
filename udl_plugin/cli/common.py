"""What the commands share: parser, exit status, progress bar, argument types, options for reading a network file."""
from __future__ import annotations

import argparse
import functools
import glob
import io
import os
import signal
import sys
from collections.abc import Iterable
from typing import Any, Callable, NoReturn, TextIO

import udl_plugin
from udl_plugin.errors import UserError, did_you_mean
from udl_plugin.utils.parallel import INTERRUPTS
from udl_plugin.utils.user_imports import IMPORT_HELP, get_imports, import_user_modules


def run_command(name: str, args: argparse.Namespace, function: Callable[[argparse.Namespace], int],
                interrupted: str) -> int:
    """Runs `function(args)` and turns its errors into one line on stderr and an exit status.

    Args:
        name: Of the command, which begins the line.
        args: With `quiet`; gets `progress`, which is `show_progress`.
        function: Returns an exit status.
        interrupted: State of the output after Ctrl-C, for the message.

    Returns:
        What `function` returned; 2 for a `UserError` or `OSError`, 130 after Ctrl-C, SIGTERM or SIGHUP.
    """
    for number in INTERRUPTS:  # all of them clean up as Ctrl-C does, except a signal that nohup ignores
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # as stderr: a pipe on Windows may lack a name's characters
    args.progress = functools.partial(show_progress, quiet=args.quiet)
    try:
        import_user_modules(getattr(args, 'imports', ()), '--import')
        return function(args)
    except UserError as err:
        message, status = str(err), 2
    except OSError as err:
        message, status = f"'{err.filename}': {err.strerror}" if err.filename else str(err), 2
    except MemoryError:
        message, status = 'memory does not suffice.', 2
    except KeyboardInterrupt:
        for number in INTERRUPTS:  # a second signal must not interrupt the clean-up
            signal.signal(number, signal.SIG_IGN)
        message, status = f'interrupted; {interrupted}', 130
    print(f'{name}: {message}', file=sys.stderr)  # after the `except`, which ends the progress bar's line
    return status


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def show(title: str, lines: Iterable[object], file: TextIO | None = None) -> None:
    """Prints a title, then `lines` with an indent."""
    print(title, *lines, sep='\n  ', file=file)


def show_progress(iterable: Iterable[Any], total: int, description: str, unit: str = 'images',
                  quiet: bool = False) -> Iterable[Any]:
    """Yields the items of `iterable` and shows a progress bar with rate and remaining time, unless `quiet`."""
    from tqdm import tqdm
    seconds = 0.1 if sys.stderr.isatty() else 10  # few lines in a log file
    return tqdm(iterable, description, total, unit=f' {unit}', mininterval=seconds, disable=quiet)


class Parser(argparse.ArgumentParser):
    """A parser with `--version`, whose help shows `description` as it is, and that suggests the nearest option.

    Args:
        prog: Name of the command.
        description: With examples.
    """

    def __init__(self, prog: str, description: str, **others: Any):
        others = {'allow_abbrev': False, 'formatter_class': argparse.RawDescriptionHelpFormatter, **others}
        super().__init__(prog, description=description, **others)
        self.given: list[str] = []
        self.add_argument('--version', action='version', version=f'udl_plugin {udl_plugin.__version__}',
                          help='show the version and exit')

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        known = list(self._option_string_actions)
        unknown = (word.partition('=')[0] for word in self.given if word.startswith('-'))
        hints = [hint.strip() if message.endswith(name) else f'{name}{hint}' for name in unknown
                 if name not in known and (hint := did_you_mean(name, known))]
        super().error(' '.join([message, *hints]))


def make_parser(prog: str, about: str) -> Parser:
    """Builds a `Parser` that also has `--import`."""
    parser = Parser(prog, about)
    add_import_option(parser)
    return parser


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--import`, which `run_command` reads."""
    parser.add_argument('--import', dest='imports', action='append', default=[], metavar='MODULE', help=IMPORT_HELP)


def path_arg(text: str) -> str:
    """Argument type: a path that is not empty."""
    if not text:
        raise ValueError
    return text


def expand_globs(paths: Iterable[str]) -> list[str]:
    """Replaces patterns such as `photos/*.png` by the paths that match, which cmd.exe leaves to programs.

    What exists or matches nothing stays as it is.
    """
    expanded: list[str] = []
    for path in paths:
        expanded += ([] if os.path.exists(path) else sorted(glob.glob(path))) or [path]
    return expanded


def positive_int(text: str) -> int:
    """Argument type: an integer of 1 or more."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


path_arg.__name__ = 'path'  # argparse prints these names: "invalid path value: ''"
positive_int.__name__ = 'positive integer'


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how to read a network file."""
    add = parser.add_argument
    add('--param-key', metavar='KEY', help='key of the weights in the file (default: params_ema if present, or params)')
    add('--opt', type=path_arg, metavar='FILE.yml',
        help='the yml that trained the network, for options that the file does not record')


def read_network_g(path: str | None) -> dict[str, Any] | None:
    """Returns `network_g` of the yml that --opt names; None without one.

    Imports what its `imports` name, too.

    Raises:
        UserError: the file cannot be read or has no network_g, or an import fails.
    """
    if path is None:
        return None
    from udl_plugin.config.yaml_loader import read_yml
    try:
        options = read_yml(path)
    except UserError as err:
        raise UserError(f'--opt: {err}') from err
    import_user_modules(get_imports(options), f"--opt: '{path}': imports")
    if not isinstance(options.get('network_g'), dict):
        raise UserError(f"--opt: '{path}' has no network_g. Pass the yml that trained the network.")
    return options['network_g']


def print_notes(notes: Iterable[str]) -> None:
    """Prints on stderr what a user should know about a network file."""
    for note in notes:
        print(f'Note: {note}', file=sys.stderr)
