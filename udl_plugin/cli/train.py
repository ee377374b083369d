"""The commands `udl-train` and `udl-test`: their arguments. See udl_plugin/training/run.py."""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from udl_plugin.cli.common import Parser, add_import_option, path_arg
from udl_plugin.cli.templates import add_template_options
from udl_plugin.training.launch_env import LAUNCHERS

TRAIN = """\
Trains a network, as BasicSR's command does, with exact resume, and checks of yml, data and checkpoint.

  udl-train options/train_udl_step1.yml
  udl-train options/train_udl_step1.yml --auto_resume
  udl-train --template edsr_s_x4_step1 > my.yml

The second continues from the last state, the third writes a yml to begin with. Results go to experiments/NAME, with
the name in the yml.
"""
TEST = """\
Tests a network, as BasicSR's command does, with checks of yml, data and checkpoint.

  udl-test options/test_udl.yml
  udl-test --template edsr_s_x4 > my.yml

Results go to results/NAME, with the name in the yml.
"""
FORCE_YML = '''options that replace those of the yml: keys joined by `:`, then `=` and a value as YAML reads it (but
1e-4 is a number, and none is null). The last key may be new. Unlike with BasicSR, nothing in it is executed'''
NO_CHECK = '''accept all options, as BasicSR does; without it, everything that is wrong with yml, data and checkpoint
is reported at once, before any folder is made'''


def main(is_train: bool, argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        is_train: Train, or test.
        argv: Arguments; default: those of the process.

    Returns:
        Exit status, see `udl_plugin.training.run.run`.
    """
    args = parse(is_train, argv)
    from udl_plugin.training.run import Arguments, run  # imports torch, which takes seconds
    return run(is_train, Arguments(**vars(args)))


def parse(is_train: bool, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments; exits with status 2 if they are wrong."""
    parser = Parser('udl-train', TRAIN) if is_train else Parser('udl-test', TEST)
    add = parser.add_argument
    add('file', nargs='?', type=path_arg, metavar='FILE.yml', help='the option file')
    add('-opt', type=path_arg, metavar='FILE.yml', help="the same, as BasicSR's command takes it")
    add('--launcher', choices=LAUNCHERS, default='none', help='of distributed training (default: none)')
    if is_train:
        add('--auto_resume', action='store_true', help="resume from this experiment's last state")
        add('--debug', action='store_true', help="BasicSR's trial of a few iterations")
    add('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    add('--force_yml', nargs='+', action='extend', default=[], metavar='KEY:KEY=VALUE', help=FORCE_YML)
    add_import_option(parser)
    add('--no-check', action='store_true', help=NO_CHECK)
    add_template_options(parser)
    args = parser.parse_args(argv)
    if not args.file and not args.opt:
        parser.error(f'name an option file: {parser.prog} FILE.yml')
    if args.file and args.opt:
        parser.error(f"two option files, '{args.file}' and '{args.opt}'; name one")
    args.opt = args.opt or args.file
    del args.file, args.local_rank  # torchrun of earlier PyTorch versions gives local_rank; the environment has it too
    return args
