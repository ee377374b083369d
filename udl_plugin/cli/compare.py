"""The command `udl-compare`: networks side by side on benchmarks. See udl_plugin/studies/compare.py."""
import argparse
import logging
import sys
import tempfile
from pathlib import Path

from udl_plugin.cli.common import path_arg, positive_int, run_command
from udl_plugin.errors import UserError

ABOUT = """\
Tests networks, and bicubic, on benchmarks through BasicSR's test code, and writes a table, crops and a report.

  udl-compare edsr.pth UDL=experiments/train_udl_step2/models/net_g_latest.pth --sets datasets/Set5 datasets/Set14
  udl-compare options/test_udl.yml swinir.yml --uncertainty

Each INPUT is a checkpoint (.pth, .pt, .safetensors) or a test yml, which any network of BasicSR can have; LABEL=FILE
names it in the tables. --sets are folders that udl-prepare benchmark wrote; without it, the data sets of the ymls are
taken. It writes, below --out: report.html with all of it, table.md, scores.csv (every image) and crops.png, and with
--uncertainty maps.csv (every image) and sparsification_SET.png.
"""

SORTS = ('given', 'psnr', 'ssim', 'params', 'madds', 'time', 'memory')


def main(argv=None):
    """Runs the command. Returns the exit status: 0; 2 for bad input; 130 after Ctrl-C."""
    args = parse(argv)
    return run_command('udl-compare', args, run, 'nothing was written')


def parse(argv):
    parser = argparse.ArgumentParser(prog='udl-compare', description=ABOUT, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('inputs', nargs='+', type=path_arg, metavar='INPUT', help='FILE or LABEL=FILE')
    add('--sets', nargs='+', type=path_arg, default=[], metavar='DIR', help='benchmarks, with GTmod2 and LRbicx2 for x2')
    add('--out', type=path_arg, default='results/compare', metavar='DIR', help='(results/compare)')
    add('--sort', choices=SORTS, default='given', help='order of the table, the best first (as given)')
    add('--image', metavar='NAME', help='of which crops are shown (the first of the first benchmark)')
    add('--box', nargs=4, type=int, action='append', metavar=('X', 'Y', 'WIDTH', 'HEIGHT'),
        help='a crop, in pixels of the ground truth; may be given again (two where the first map is highest)')
    add('--box-size', type=positive_int, default=96, metavar='N', help='sides of the crops that are picked (96)')
    add('--uncertainty', action='store_true', help='rate the maps: correlation, AUSE, calibration, sparsity')
    add('--eu', nargs='+', default=[], metavar='LABEL', help='networks whose map is from EU, not ESU, for calibration')
    add('--gaussian', nargs='+', default=[], metavar='LABEL', help='networks whose map is from GaussianNLL')
    add('--force', action='store_true', help='replace a report that exists')
    add('--quiet', action='store_true', help='show errors only')
    args = parser.parse_args(argv)
    if (args.eu or args.gaussian) and not args.uncertainty:
        parser.error('--eu and --gaussian want --uncertainty')
    return args


def run(args):
    report = Path(args.out, 'report.html')
    if report.exists() and not args.force:
        raise UserError(f"'{report}' exists already; choose another --out or give --force.")
    from udl_plugin.inference.cost import machine  # from here on it takes seconds
    from udl_plugin.studies import compare, compare_report
    from udl_plugin.studies.report import markdown_table, to_html, write_files
    logging.getLogger('basicsr').setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix='udl_compare_') as folder:
        entries, datasets, scale = compare.read_entries(args.inputs, folder)
        losses = {**dict.fromkeys(args.eu, 'EU'), **dict.fromkeys(args.gaussian, 'GaussianNLL')}
        for label in losses:
            if label not in [entry.label for entry in entries]:
                raise UserError(f"--eu, --gaussian: there is no network '{label}'; there are: "
                                 f'{", ".join(entry.label for entry in entries)}.')
        if args.uncertainty and not any(entry.has_map for entry in entries):
            raise UserError('--uncertainty: none of the networks has a map; take checkpoints of step 1 or 2.')
        benchmarks = compare.find_benchmarks(args.sets, datasets, scale)
        shown = compare.find_shown(args.image, benchmarks, scale)
        boxes = [tuple(box) for box in args.box or ()]
        for x, y, width, height in boxes:
            if not (0 <= x < x + width <= shown.width and 0 <= y < y + height <= shown.height):
                raise UserError(f'--box {x} {y} {width} {height}: is not inside {shown.name}, {shown.width} x '
                                 f'{shown.height}.')
        results = compare.compare(
            entries, benchmarks, scale, shown, args.uncertainty, losses,
            lambda pairs, number: args.progress(pairs, number, 'Testing', 'networks'))
    boxes = boxes or compare_report.find_boxes(results, args.box_size)
    parts, files = compare_report.report_of(results, scale, boxes, args.sort, machine())
    table = markdown_table(compare_report.table_of(results, args.sort))
    tables = [table] + [f'Maps, {benchmark}:\n\n' + markdown_table(compare_report.map_table_of(results, benchmark))
                        for benchmark in results[0].scores if any(benchmark in result.maps for result in results)]
    files.update({'table.md': '\n\n'.join(tables) + '\n', 'report.html': to_html(f'Networks at x{scale}', parts)})
    write_files(args.out, files)
    if not args.quiet:
        print('\n' + files['table.md'])
        print(f'Report: {report.resolve()}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
