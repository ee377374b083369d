"""The command `udl-study`: a matrix of trainings, tabled and drawn. See udl_plugin/studies/."""
import argparse
import sys
from pathlib import Path

from udl_plugin.cli.common import path_arg, positive_int, run_command, show

ABOUT = """\
Trains the variants, networks, scales and seeds that a yml names, each through BasicSR's training, and compares them.

  udl-study options/studies/demo.yml
  udl-study options/studies/losses.yml --jobs 4

The second trains four at once, each on a GPU of its own where there are GPUs. What is finished is not trained again,
and what was killed goes on from its last checkpoint: give the same command. Everything goes into one folder, here
results/losses: losses.html, the report; losses.md and losses.csv, its table; losses_images.csv, the scores of every
image; losses_differences.png and losses_curves.png; options/, experiments/ and tb_logger/ are those of the trainings.
Studies with the same --out share trainings. Of each training the last network is kept.
"""


def main(argv=None):
    """Runs the command. Returns the exit status: 0; 1 where a training failed; 2 for bad input; 130 after Ctrl-C."""
    args = parse(argv)
    return run_command('udl-study', args, run, 'the same command goes on')


def parse(argv):
    parser = argparse.ArgumentParser(prog='udl-study', description=ABOUT, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('study', type=path_arg, metavar='STUDY.yml', help='such as options/studies/losses.yml, which explains the keys')
    add('--out', type=path_arg, metavar='DIR', help='the folder (default: results/ and the name in the yml)')
    add('--jobs', type=positive_int, default=1, metavar='N', help='trainings at once (1)')
    add('--report', action='store_true', help='train nothing; table and draw what is finished')
    add('--quiet', action='store_true', help='show errors only')
    return parser.parse_args(argv)


def run(args):
    from udl_plugin.studies.config import read_study
    from udl_plugin.studies.report import to_html, write_files  # from here on it takes seconds
    from udl_plugin.studies.runner import refuse_others, run_study
    from udl_plugin.studies.tables import report_of
    study = read_study(args.study, args.out and Path(args.out))
    failed = {}
    if args.report:
        refuse_others(study)
    else:
        failed = run_study(study, args.jobs, lambda line: None if args.quiet else print(line, flush=True))
    parts, files = report_of(study)
    files[f'{study.name}.html'] = to_html(f'Study: {study.name}', parts)
    write_files(study.folder, files)
    if not args.quiet:
        print('\n' + files[f'{study.name}.md'])
        print(f'Report: {(study.folder / study.name).resolve()}.html')
    if failed:
        show(f'udl-study: trainings that failed: {len(failed)} of {len(study.runs)}; the same command tries them again',
             [f'{name} {why}' for name, why in failed.items()], file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
