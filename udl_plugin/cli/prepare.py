"""The command `udl-prepare`: training sets and benchmarks from folders of images. See udl_plugin/prepare/datasets.py."""
import argparse
import sys
from pathlib import Path

from udl_plugin.cli.common import path_arg, positive_int, run_command, show
from udl_plugin.data.lmdb_io import is_lmdb
from udl_plugin.errors import UserError
from udl_plugin.prepare.datasets import prepare_benchmark, prepare_train
from udl_plugin.prepare.verify import CheckResult, check_images, check_pair
from udl_plugin.utils.imresize import BORDERS
from udl_plugin.utils.parallel import available_cores

TRAIN = """\
Cuts images into sub-images and writes them as LMDBs, for dataroot_gt and dataroot_lq with io_backend: type: lmdb.

  udl-prepare train --hr DIV2K_train_HR --scales 2 3 4 --out datasets/DIV2K

writes, below datasets/DIV2K/,

  DIV2K_train_HR_sub.lmdb
  DIV2K_train_LR_bicubic_X2_sub.lmdb   and so for X3 and X4

with LR images as MATLAB's imresize makes them, bit for bit. Or with DIV2K's own:

  udl-prepare train --hr DIV2K_train_HR --lr DIV2K_train_LR_bicubic/X4 --scales 4 --out datasets/DIV2K
"""
BENCHMARK = """\
Writes a benchmark as validation reads it: HR cut to a multiple of the scale, and LR as MATLAB's imresize makes it.

  udl-prepare benchmark --hr benchmark/Set5/HR --name Set5 --scales 2 3 4 --out datasets

writes, below datasets/Set5/,

  GTmod2/*.png   LRbicx2/*.png   and so for 3 and 4
"""
UNCERTAINTY = """\
Runs the network of step 1 once over a training set and keeps its uncertainty maps, so that step 2 need not run it.

  udl-prepare uncertainty --model experiments/train_udl_step1/models/net_g_latest.pth \\
      --data datasets/DIV2K/DIV2K_train_HR_sub.lmdb datasets/DIV2K/DIV2K_train_LR_bicubic_X4_sub.lmdb \\
      --out datasets/DIV2K/DIV2K_train_uncertainty_X4_sub.lmdb

Then, in the yml of step 2, under datasets: train:,

  type: PairedImageUncertaintyDataset
  dataroot_uncertainty: datasets/DIV2K/DIV2K_train_uncertainty_X4_sub.lmdb
"""
CHECK = """\
Decodes every image of an LMDB or a folder. With two of them, HR and LR, compares names and sizes.

  udl-prepare check datasets/DIV2K/DIV2K_train_HR_sub.lmdb datasets/DIV2K/DIV2K_train_LR_bicubic_X4_sub.lmdb

Exit status 1 and a list where something is wrong, otherwise 0.
"""

NAMED = 10  # of many images, in a note


def main(argv=None):
    """Runs the command. Returns the exit status: 0; 1 where a check failed; 2 for bad input; 130 after Ctrl-C."""
    args = parse(argv)
    return run_command('udl-prepare', args, args.run, 'nothing was changed')


def parse(argv):
    parser = argparse.ArgumentParser(prog='udl-prepare', description='Prepares data for super-resolution. Examples: '
                                     'udl-prepare train --help, and so for the other commands.')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)

    train = _add_command(commands, 'train', run_train, 'sub-images of HR and LR as LMDBs', TRAIN)
    add = train.add_argument
    add('--hr', nargs='+', type=path_arg, required=True, metavar='DIR', help='folders of HR images')
    add('--out', type=path_arg, required=True, metavar='DIR', help='where the LMDBs go')
    _add_making_options(train)
    add('--lr', nargs='+', type=path_arg, metavar='DIR', help='folders of LR images, one a scale, in their order; '
        'with several --hr, those of the first one first. Names as in HR, or like 0001x4.png (default: LR is made)')
    add('--name', help='what the names of the LMDBs begin with (default: the name of --out)')
    add('--crop', type=positive_int, default=480, metavar='N', help='sides of the sub-images, in HR pixels (%(default)s)')
    add('--step', type=positive_int, default=240, metavar='N', help='from one to the next, in HR pixels (%(default)s)')
    _add_uncompressed(train)

    benchmark = _add_command(commands, 'benchmark', run_benchmark, 'HR and LR for validation and test', BENCHMARK)
    add = benchmark.add_argument
    add('--hr', type=path_arg, required=True, metavar='DIR', help='folder of HR images')
    add('--name', required=True, help='of the set, such as Set5')
    add('--out', type=path_arg, required=True, metavar='DIR', help='where the folder NAME goes')
    _add_making_options(benchmark)
    add('--lmdb', action='store_true', dest='as_lmdb', help='write GTmod4.lmdb and LRbicx4.lmdb, not PNG files')

    uncertainty = _add_command(commands, 'uncertainty', run_uncertainty, 'the maps of a training set, for step 2',
                               UNCERTAINTY)
    add = uncertainty.add_argument
    add('--model', type=path_arg, required=True, metavar='FILE', help='checkpoint of step 1')
    add('--data', nargs=2, type=path_arg, required=True, metavar='LMDB', help='the training set: HR, then LR')
    add('--out', type=path_arg, required=True, metavar='LMDB', help='where the maps go')
    add('--param-key', default='params', metavar='KEY', help='of the state dict, as param_key_g in the yml of step 2: '
        'params_ema is the moving average (%(default)s)')
    add('--opt', type=path_arg, metavar='YML', help='whose network_g the checkpoint is of, where it does not say so')
    _add_uncompressed(uncertainty)
    add('--batch', type=positive_int, metavar='N', help='sub-images at once (default: 16 on a GPU, otherwise 1)')
    add('--force', action='store_true', help='replace what exists, once the new is complete')

    check = _add_command(commands, 'check', run_check, 'decode and compare what an LMDB or a folder holds', CHECK)
    add = check.add_argument
    add('paths', nargs='+', type=path_arg, metavar='PATH', help='LMDB or folder; HR first, then LR')
    add('--scale', type=positive_int, metavar='N', help='between the two (default: that of most pairs)')

    args = parser.parse_args(argv)
    if len(getattr(args, 'paths', ())) > 2:
        check.error('one PATH, or two')
    if 'paths' in args and len(args.paths) == 1 and args.scale:
        check.error('--scale needs two of PATH')
    return args


def _add_command(commands, name, run, summary, text):
    command = commands.add_parser(name, help=summary, description=text, allow_abbrev=False,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    command.set_defaults(run=run)
    add = command.add_argument
    add('--workers', type=positive_int, default=available_cores(), metavar='N', help='processes (%(default)s: one a core)')
    add('--quiet', action='store_true', help='show errors only')
    return command


def _add_making_options(command):
    add = command.add_argument
    add('--scales', nargs='+', type=positive_int, required=True, metavar='N', help='such as 2 3 4')
    add('--keep-grey', action='store_true', help='leave grey images one channel, instead of three equal ones')
    add('--border', choices=BORDERS, default='clamp', help='what resizing sees beyond the border: the last pixel, as '
        'in the usual benchmarks, or the mirrored image (%(default)s)')
    add('--skip-bad', action='store_true', help='leave images that cannot be read or do not fit out of HR and LR, and '
        'list them')
    add('--force', action='store_true', help='replace what exists, once the new is complete')


def _add_uncompressed(command):
    command.add_argument('--uncompressed', action='store_false', dest='compress', help='BMP records in place of PNG: '
                         'more room, and less time to read them in training')


def run_train(args):
    return report(args, prepare_train(**_options(args)))


def run_benchmark(args):
    return report(args, prepare_benchmark(**_options(args)))


def _options(args):
    return {name: value for name, value in vars(args).items() if name not in ('run', 'quiet')}


def report(args, prepared):
    if not args.quiet:
        print(f'From {prepared.images} HR images:')
        for path, count in prepared.folders.items():
            print(f'  {path}: {count} images, {size_of(path)}')
        if prepared.alpha:
            show(f'Alpha channel dropped from: {len(prepared.alpha)}', prepared.alpha[:NAMED])
        if prepared.small:
            show(f'Smaller than --crop {args.crop} in a direction, and so are their sub-images, which need gt_size for '
                 f'training: {len(prepared.small)}', prepared.small[:NAMED])
    if prepared.skipped:
        show(f'udl-prepare: images left out: {len(prepared.skipped)}', prepared.skipped, file=sys.stderr)
    return 0


def run_uncertainty(args):
    # here: they need torch, and the processes of the other commands do not
    from udl_plugin.cli.common import read_network_g
    from udl_plugin.prepare.uncertainty_maps import prepare_uncertainty
    network_g = read_network_g(args.opt) if args.opt else None
    made = prepare_uncertainty(args.model, *args.data, args.out, args.param_key, network_g, args.batch,
                               args.compress, args.force, args.workers, args.progress)
    if not args.quiet:
        print(f'{args.out}: {made.images} maps, {made.size / 1e6:.1f} MB, {made.size / made.pixels:.2f} '
              'MB a megapixel.')
        print(f'Under datasets: train: of step 2:\n  type: PairedImageUncertaintyDataset\n'
              f'  dataroot_uncertainty: {args.out}')
    return 0


def run_check(args):
    checked = [check_path(path, args) for path in args.paths]
    problems = [f'{path}: {problem}' for path, found in zip(args.paths, checked) for problem in found.problems]
    lines = [f'{path}: {len(found.shapes)} images, {sizes(found.shapes)}, {size_of(path)}'
             for path, found in zip(args.paths, checked)]
    if len(checked) == 2 and all(found.shapes for found in checked):
        unreadable = {problem.partition(':')[0] for found in checked for problem in found.problems}
        hr, lr = ({name: shape for name, shape in found.shapes.items() if name not in unreadable} for found in checked)
        scale, differences = check_pair(hr, lr, args.scale, same_names=all(map(is_lmdb, args.paths)))
        problems += differences
        lines += [f'All images can be decoded; names and sizes fit a scale of {scale}.'] * (not problems)
    elif not problems:
        lines.append('All images can be decoded.')
    if not args.quiet:
        print(*lines, sep='\n')
    if problems:
        show(f'udl-prepare: problems: {len(problems)}', problems, file=sys.stderr)
    return 1 if problems else 0


def check_path(path, args):
    try:
        return check_images(path, args.workers, args.progress)
    except UserError as err:
        if not Path(path).exists():
            raise
        return CheckResult({}, [str(err)])


def sizes(shapes):
    """`480 x 480`, or from the least to the greatest width and height."""
    if not shapes:
        return 'none can be read'
    heights, widths, _ = zip(*shapes.values())
    least, greatest = f'{min(widths)} x {min(heights)}', f'{max(widths)} x {max(heights)}'
    return f'{greatest} pixels' if least == greatest else f'{least} to {greatest} pixels'


def size_of(folder):
    size = sum(path.stat().st_size for path in Path(folder).iterdir() if path.is_file())
    return f'{size / 1e9:.2f} GB' if size >= 1e9 else f'{size / 1e6:.1f} MB'


if __name__ == '__main__':
    sys.exit(main())
