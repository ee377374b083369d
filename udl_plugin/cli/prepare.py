"""The command `udl-prepare`: prepares training sets and benchmarks from folders of images."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udl_plugin.cli.common import (
    Parser,
    add_import_option,
    add_reading_options,
    expand_globs,
    path_arg,
    positive_int,
    print_notes,
    read_network_g,
    run_command,
    show,
)
from udl_plugin.utils.imresize import BORDERS
from udl_plugin.utils.parallel import available_cores

if TYPE_CHECKING:
    from udl_plugin.prepare.verify import Shape

TRAIN = """\
Crops images to sub-images and writes them as LMDBs, for dataroot_gt and dataroot_lq with io_backend: type: lmdb.

  udl-prepare train --hr DIV2K_train_HR --scales 2 3 4 --out datasets/DIV2K

writes to datasets/DIV2K/:

  DIV2K_train_HR_sub.lmdb
  DIV2K_train_LR_bicubic_X2_sub.lmdb   and the same for X3 and X4

LR images are bit for bit those of MATLAB's imresize. To use DIV2K's own LR images:

  udl-prepare train --hr DIV2K_train_HR --lr DIV2K_train_LR_bicubic/X4 --scales 4 --out datasets/DIV2K
"""
BENCHMARK = """\
Writes a benchmark for validation: HR cropped to a multiple of the scale, and LR as MATLAB's imresize makes it.

  udl-prepare benchmark --hr benchmark/Set5/HR --name Set5 --scales 2 3 4 --out datasets

writes to datasets/Set5/:

  GTmod2/*.png   LRbicx2/*.png   and the same for 3 and 4

In a folder as SelfExSR publishes it, with img_001_SRF_4_HR.png, ..._LR.png and results of methods, only HR is taken.
"""
UNCERTAINTY = """\
Runs a step-1 network over a training set and caches its uncertainty maps, so that step 2 need not run the network.

  udl-prepare uncertainty --model experiments/train_udl_step1/models/net_g_latest.pth \\
      --data datasets/DIV2K/DIV2K_train_HR_sub.lmdb datasets/DIV2K/DIV2K_train_LR_bicubic_X4_sub.lmdb \\
      --out datasets/DIV2K/DIV2K_train_uncertainty_X4_sub.lmdb

Then set in the option file of step 2, under datasets: train:

  type: PairedImageUncertaintyDataset
  dataroot_uncertainty: datasets/DIV2K/DIV2K_train_uncertainty_X4_sub.lmdb
"""
CHECK = """\
Decodes every image of an LMDB or a folder. With two of them, HR and LR, also compares names, sizes and content: which
resizer made LR of HR, how far it is from MATLAB's, and which pairs are shifted or swapped (100 pairs at most).

  udl-prepare check datasets/DIV2K/DIV2K_train_HR_sub.lmdb datasets/DIV2K/DIV2K_train_LR_bicubic_X4_sub.lmdb

If images are wrong, it prints a list and the exit status is 1; if an LMDB or a folder cannot be read, 2; otherwise 0.
"""

MAX_LISTED = 10  # images in a note


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0; 1 if a check failed; 2 for a user error; 130 after Ctrl-C."""
    args = parse(argv)
    return run_command('udl-prepare', args, args.run, 'nothing was changed')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser('udl-prepare', 'Prepares data for super-resolution. See udl-prepare COMMAND --help for examples.')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)

    train = _add_command(commands, 'train', run_images, 'sub-images of HR and LR as LMDBs', TRAIN)
    add = train.add_argument
    add('--hr', nargs='+', type=path_arg, required=True, metavar='DIR', help='folders of HR images')
    add('--out', type=path_arg, required=True, metavar='DIR', help='folder for the LMDBs')
    _add_common_options(train)
    add('--lr', nargs='+', type=path_arg, metavar='DIR', help='folders of LR images, one per scale in the order of '
        '--scales; with several --hr, first those of the first. Names as in HR, or like 0001x4.png (default: make LR)')
    add('--name', help='start of the names of the LMDBs (default: the name of --out)')
    add('--crop', type=positive_int, default=480, metavar='N', help='side of the sub-images in HR pixels (%(default)s)')
    add('--step', type=positive_int, default=240, metavar='N', help='distance of the sub-images in HR pixels '
        '(%(default)s)')
    _add_uncompressed(train)

    benchmark = _add_command(commands, 'benchmark', run_images, 'HR and LR for validation and test', BENCHMARK)
    add = benchmark.add_argument
    add('--hr', type=path_arg, required=True, metavar='DIR', help='folder of HR images')
    add('--name', required=True, help='name of the set, such as Set5')
    add('--out', type=path_arg, required=True, metavar='DIR', help='folder for the folder NAME')
    _add_common_options(benchmark)
    add('--lmdb', action='store_true', dest='as_lmdb', help='write GTmod4.lmdb and LRbicx4.lmdb instead of PNG files')

    uncertainty = _add_command(commands, 'uncertainty', run_uncertainty,
                               'uncertainty maps of a training set, for step 2', UNCERTAINTY)
    add = uncertainty.add_argument
    add('--model', type=path_arg, required=True, metavar='FILE', help='checkpoint of step 1')
    add('--data', nargs=2, type=path_arg, required=True, metavar='LMDB', help='training set: HR, then LR')
    add('--out', type=path_arg, required=True, metavar='LMDB', help='LMDB to write')
    add_reading_options(uncertainty)
    add_import_option(uncertainty)
    _add_uncompressed(uncertainty)
    add('--batch', type=positive_int, metavar='N', help='sub-images per batch (default: 16 on a GPU, otherwise 1)')
    add('--force', action='store_true', help='replace existing data when the new data is complete')

    check = _add_command(commands, 'check', run_check, 'decode and compare the images of LMDBs or folders', CHECK)
    add = check.add_argument
    add('path', type=path_arg, metavar='PATH', help='LMDB or folder')
    add('lr', type=path_arg, nargs='?', metavar='LR', help='LMDB or folder of the LR images, if PATH has HR images')
    add('--scale', type=positive_int, metavar='N', help='scale between the two (default: that of most pairs)')
    return parser.parse_args(argv)


def _add_command(commands: Any, name: str, run: Callable, summary: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=text)
    command.set_defaults(run=run)
    add = command.add_argument
    add('--workers', type=positive_int, default=available_cores(), metavar='N', help='processes (%(default)s, one per '
        'CPU core)')
    add('--quiet', action='store_true', help='show errors only')
    return command


def _add_common_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add('--scales', nargs='+', type=positive_int, required=True, metavar='N', help='such as 2 3 4')
    add('--hr-pattern', metavar='GLOB', help="take only HR files whose name matches, such as '*_HR.png' (default: all; "
        'or *_HR where there are *_LR beside them)')
    add('--keep-grey', action='store_true', help='keep the single channel of grey images, instead of three equal ones')
    add('--border', choices=BORDERS, default='clamp', help='how to continue images beyond their border when resizing: '
        'repeat the last pixel, as in the usual benchmarks, or mirror the image (%(default)s)')
    add('--skip-bad', action='store_true', help='skip images that cannot be read or do not fit, in HR and LR, and list '
        'them')
    add('--force', action='store_true', help='replace existing data when the new data is complete')


def _add_uncompressed(command: argparse.ArgumentParser) -> None:
    command.add_argument('--uncompressed', action='store_false', dest='compress', help='BMP records instead of PNG: '
                         'larger, and faster to read in training')


def run_images(args: argparse.Namespace) -> int:
    """Runs `udl-prepare train` or `udl-prepare benchmark`."""
    from udl_plugin.prepare.datasets import prepare_benchmark, prepare_train
    options = {name: value for name, value in vars(args).items() if name not in ('command', 'run', 'quiet')}
    for name in ('hr', 'lr'):
        if isinstance(options.get(name), list):
            options[name] = expand_globs(options[name])
    result = prepare_train(**options) if args.command == 'train' else prepare_benchmark(**options)
    if not args.quiet:
        print(f'From {result.images} HR images:')
        for path, count in result.folders.items():
            print(f'  {path}: {count} images, {_disk_size(path)}')
        if result.left_out:
            show(f'Images beside those of HR, not taken: {len(result.left_out)}', result.left_out[:MAX_LISTED])
        if result.alpha:
            show(f'Images whose alpha channel was dropped: {len(result.alpha)}', result.alpha[:MAX_LISTED])
        if result.small:
            show(f'Images smaller than --crop {args.crop}, whose sub-images may be smaller than gt_size: '
                 f'{len(result.small)}', result.small[:MAX_LISTED])
    if result.skipped:
        show(f'udl-prepare: skipped images: {len(result.skipped)}', result.skipped, file=sys.stderr)
    return 0


def run_uncertainty(args: argparse.Namespace) -> int:
    """Runs `udl-prepare uncertainty`."""
    # imported here because it imports torch, which the other commands and their workers do not need
    from udl_plugin.prepare.uncertainty_maps import prepare_uncertainty
    hr, lr = args.data
    stats = prepare_uncertainty(args.model, hr, lr, args.out, args.param_key, read_network_g(args.opt), args.batch,
                                args.compress, args.force, args.workers, args.progress)
    print_notes(stats.notes)
    if not args.quiet:
        print(f'{args.out}: {stats.images} maps, {stats.size / 1e6:.1f} MB, {stats.size / stats.pixels:.2f} MB per '
              'megapixel.')
        print(f'Set under datasets: train: of step 2:\n  type: PairedImageUncertaintyDataset\n'
              f'  dataroot_uncertainty: {args.out}')
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Runs `udl-prepare check`. Returns 1 if there are problems."""
    from udl_plugin.data.image_io import pair_names
    from udl_plugin.data.lmdb_io import is_lmdb
    from udl_plugin.prepare.verify import check_images, check_pair, compare_content
    paths = [path for path in (args.path, args.lr) if path]
    results = [check_images(path, args.workers, args.progress) for path in paths]
    problems = [f'{path}: {problem}' for path, result in zip(paths, results) for problem in result.problems]
    lines = [f'{path}: {len(result.shapes)} images, {_format_sizes(result.shapes)}, {_disk_size(path)}'
             for path, result in zip(paths, results)]
    if len(results) == 2 and all(result.shapes for result in results):
        unreadable = {problem.partition(':')[0] for result in results for problem in result.problems}
        hr, lr = ({name: shape for name, shape in result.shapes.items() if name not in unreadable}
                  for result in results)
        scale, differences = check_pair(hr, lr, args.scale, same_names=all(map(is_lmdb, paths)))
        problems += differences
        lines += [f'All images can be decoded; names and sizes match at scale {scale}.'] * (not problems)
        if scale > 1:
            pairs = {name: other for name, other in pair_names(hr, lr)[0].items()  # HR may be larger by some pixels
                     if tuple(length // scale for length in hr[name][:2]) == tuple(lr[other][:2])}
            found, differences = compare_content(args.path, args.lr, pairs, scale, args.workers, args.progress)
            problems += differences
            lines += found
    elif not problems:
        lines.append('All images can be decoded.')
    if not args.quiet:
        print(*lines, sep='\n')
    if problems:
        show(f'udl-prepare: problems: {len(problems)}', problems, file=sys.stderr)
    return 1 if problems else 0


def _format_sizes(shapes: Mapping[str, Shape]) -> str:
    """`480 x 480 pixels`, or from the smallest to the largest width and height."""
    if not shapes:
        return 'none can be read'
    heights, widths, _ = zip(*shapes.values())
    smallest, largest = f'{min(widths)} x {min(heights)}', f'{max(widths)} x {max(heights)}'
    return f'{largest} pixels' if smallest == largest else f'{smallest} to {largest} pixels'


def _disk_size(folder: str | Path) -> str:
    size = sum(path.stat().st_size for path in Path(folder).iterdir() if path.is_file())
    return f'{size / 1e9:.2f} GB' if size >= 1e9 else f'{size / 1e6:.1f} MB'


if __name__ == '__main__':
    sys.exit(main())
