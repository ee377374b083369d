"""The command `udl-compare`: networks side by side on benchmarks. See udl_plugin/studies/compare.py."""
from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from udl_plugin.cli.common import (
    expand_globs,
    make_parser,
    path_arg,
    positive_int,
    print_notes,
    read_network_g,
    run_command,
)
from udl_plugin.errors import UserError
from udl_plugin.utils.memory import explain_out_of_memory

ABOUT = """\
Tests networks and bicubic on benchmarks through BasicSR's test code, and writes a table, crops and a report.

  udl-compare edsr.pth UDL=experiments/train_udl_step2/models/net_g_latest.pth --sets datasets/Set5 datasets/Set14
  udl-compare options/test_udl.yml swinir.yml --uncertainty

Each INPUT is a checkpoint (.pth, .pt, .safetensors) or a test yml, which may have any network of BasicSR; LABEL=FILE
sets its name in the tables. A checkpoint that does not record its network needs --opt FILE.yml, the yml that trained
it. --sets are folders that `udl-prepare benchmark` wrote; by default, the datasets of the ymls are used. Files in
--out: report.html, everything in one file; compare.html, a page to compare the images of one photo with a divider;
table.md; scores.csv, the scores of every image; crops.png; with --uncertainty also maps.csv, the map quality of every
image, and sparsification_SET.png.
"""
PAGE = 'compare.html'

SORTS = ('given', 'psnr', 'ssim', 'params', 'madds', 'time', 'memory')


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0; 2 for bad input; 130 after Ctrl-C."""
    return run_command('udl-compare', parse(argv), run, 'nothing was written')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser('udl-compare', ABOUT)
    add = parser.add_argument
    add('inputs', nargs='+', type=path_arg, metavar='INPUT', help='FILE or LABEL=FILE')
    add('--sets', nargs='+', type=path_arg, default=[], metavar='DIR',
        help='benchmarks: folders with GTmod2 and LRbicx2 for x2')
    add('--out', type=path_arg, default='results/compare', metavar='DIR', help='output folder (default: %(default)s)')
    add('--opt', action='append', type=path_arg, default=[], metavar='FILE.yml',
        help='the yml that trained the networks, for options that the checkpoints do not record; LABEL=FILE.yml: for '
        'the checkpoint with this label only (repeatable)')
    add('--sort', choices=SORTS, default='given', help='sort the table, the best first (default: as given)')
    add('--image', metavar='NAME', help='image to crop (default: the first of the first benchmark)')
    add('--box', nargs=4, type=int, action='append', metavar=('X', 'Y', 'WIDTH', 'HEIGHT'),
        help='a crop, in pixels of the ground truth; may be repeated (default: two, where the first map is highest)')
    add('--box-size', type=positive_int, default=96, metavar='N', help='size of the default crops (default: 96)')
    add('--tile', type=positive_int, metavar='N',
        help='run the networks on tiles of N x N LR pixels, to save memory (default: the full image)')
    add('--uncertainty', action='store_true', help='rate the maps: correlation, AUSE, calibration, sparsity')
    add('--eu', nargs='+', default=[], metavar='LABEL',
        help='networks whose map was trained with EU, if the checkpoint does not record the loss (default: ESU)')
    add('--gaussian', nargs='+', default=[], metavar='LABEL', help='likewise, with GaussianNLL')
    add('--force', action='store_true', help='replace an existing report')
    add('--quiet', action='store_true', help='print errors only')
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    existing = Path(args.out, 'report.html')
    if existing.exists() and not args.force:
        raise UserError(f"'{existing}' already exists; choose another --out or pass --force.")
    from udl_plugin.checkpoints.network_file import find_error_loss  # these imports take seconds
    from udl_plugin.inference.cost import machine
    from udl_plugin.inference.provenance import list_provenance
    from udl_plugin.studies import compare, compare_report
    from udl_plugin.studies.report import format_for_terminal
    logging.getLogger('basicsr').setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix='udl_compare_') as folder:
        networks = {label: read_network_g(path) for label, path in map(compare.split_label, args.opt)}
        losses = {**dict.fromkeys(args.eu, 'EU'), **dict.fromkeys(args.gaussian, 'GaussianNLL')}
        entries, datasets, scale = compare.read_entries(expand_globs(args.inputs), folder, networks, args.tile, losses)
        notes = {entry.label: find_error_loss(entry.recorded_loss)[1] for entry in entries
                 if entry.has_map and entry.label not in losses}
        print_notes(f'{label}: {note} --eu and --gaussian select another.' for label, note in notes.items() if note)
        if args.uncertainty and not any(entry.has_map for entry in entries):
            raise UserError('--uncertainty: none of the networks has a map; use checkpoints of step 1 or 2.')
        benchmarks = compare.find_benchmarks(expand_globs(args.sets), datasets, scale)
        sample = compare.find_sample(args.image, benchmarks, scale)
        boxes = [tuple(box) for box in args.box or ()]
        for x, y, width, height in boxes:
            if not (0 <= x < x + width <= sample.width and 0 <= y < y + height <= sample.height):
                raise UserError(f'--box {x} {y} {width} {height}: is not inside {sample.name}, which is '
                                f'{sample.width} x {sample.height} pixels.')
        shown = args.progress(entries, len(entries), 'Testing', 'networks')
        results = explain_out_of_memory('memory does not suffice; use --tile 256, or less.', compare.compare, shown,
                                        benchmarks, scale, sample, args.uncertainty)
    boxes = boxes or compare_report.find_boxes(results, args.box_size)
    provenance = list_provenance(dict.fromkeys(path for entry in entries for path in entry.files))
    report = compare_report.build_report(results, scale, boxes, args.sort, machine(), provenance)
    try:
        report.files[PAGE] = compare_report.build_compare_page(results, scale, boxes, args.sort, provenance)
    except UserError as err:  # the report does without
        print_notes([f'{PAGE} is not written: {err}'])
    path = report.write(args.out, 'report.html')
    if not args.quiet:
        print('', format_for_terminal(str(report.files['table.md'])), sep='\n')
        print(f'Report: {path}')
        if PAGE in report.files:
            print(f'Images: {path.with_name(PAGE)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
