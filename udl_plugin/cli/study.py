"""The command `udl-study`: trains a matrix of variants and reports the results. See udl_plugin/studies/."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from udl_plugin.cli.common import make_parser, path_arg, positive_int, run_command, show
from udl_plugin.cli.templates import add_template_options

ABOUT = """\
Trains the variants, networks, scales and seeds of a study through BasicSR, and compares the results.

  udl-study options/studies/demo.yml
  udl-study options/studies/losses.yml --jobs 4
  udl-study --template losses > my_study.yml

The second command runs four trainings at once, each on its own GPU if there are GPUs. Finished trainings are skipped,
and interrupted ones resume from their last checkpoint: just run the same command again. Everything is written to one
folder, here results/losses: losses.html, the report; losses.md and losses.csv, its table; losses_images.csv, the scores
of every image; losses_differences.svg and losses_curves.svg; options/, experiments/, logs/ and tb_logger/ of the
trainings. Studies with the same --out share trainings. Of each training, only the last network is kept.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0; 1 if a training failed; 2 for bad input; 130 after Ctrl-C."""
    return run_command('udl-study', parse(argv), run, 'run the same command again to resume')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser('udl-study', ABOUT)
    add = parser.add_argument
    add('study', type=path_arg, metavar='STUDY.yml', help='such as options/studies/losses.yml, which explains the keys')
    add('--out', type=path_arg, metavar='DIR', help='output folder (default: results/NAME, with the name in the yml)')
    add('--jobs', type=positive_int, default=1, metavar='N', help='number of trainings at once (default: 1)')
    add('--report', action='store_true', help='train nothing; report what is finished')
    add('--quiet', action='store_true', help='print errors only')
    add_template_options(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    from udl_plugin.studies.config import read_study  # these imports take seconds
    from udl_plugin.studies.report import format_for_terminal
    from udl_plugin.studies.runner import check_same_options, run_study
    from udl_plugin.studies.study_report import build_report
    study = read_study(args.study, args.out and Path(args.out), args.imports)
    failed: dict[str, str] = {}
    if args.report:
        check_same_options(study)
    else:
        failed = run_study(study, args.jobs, lambda line: None if args.quiet else print(line, flush=True))
    report = build_report(study)
    path = report.write(study.folder, f'{study.name}.html')
    if not args.quiet:
        print('', format_for_terminal(str(report.files[f'{study.name}.md'])), sep='\n')
        print(f'Report: {path}')
    if failed:
        show(f'udl-study: {len(failed)} of {len(study.runs)} trainings failed; run the same command again to retry',
             [f'{name} {reason}' for name, reason in failed.items()], file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
