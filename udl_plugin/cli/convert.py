"""The command `udl-convert`: writes a network in another file format. See udl_plugin/checkpoints/export.py."""
from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence

import yaml

from udl_plugin.cli.common import add_reading_options, make_parser, path_arg, print_notes, read_network_g, run_command
from udl_plugin.errors import UserError

ABOUT = """\
Writes the network in a file to another file. The suffix of OUTPUT selects the format:

  udl-convert experiments/train_udl_step2/models/net_g_latest.pth edsr_s.pth
  udl-convert experiments/train_udl_step2/models/net_g_latest.pth edsr_s.safetensors
  udl-convert experiments/train_udl_step2/models/net_g_latest.pth edsr_s.onnx

Each holds the base SR network of a checkpoint of any step; BasicSR's EDSR loads the first one with strict=True. With
--layout udl, a file holds everything in INPUT, and an .onnx also returns the expected error, in 8-bit levels:

  udl-convert experiments/train_udl_step2/models/net_g_latest.pth edsr_s_map.onnx --layout udl

Files that the method's authors released are recognised. To start step 2 from one:

  udl-convert edsr_s_x4_step1.pt step1.pth --layout udl

OUTPUT records its network_g, which is also printed for use in a yml.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    return run_command('udl-convert', parse(argv), run, 'nothing was changed')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments; exits with status 2 if they are wrong."""
    parser = make_parser('udl-convert', ABOUT)
    add = parser.add_argument
    add('input', type=path_arg, metavar='INPUT', help='.pth, .pt or .safetensors')
    add('output', type=path_arg, metavar='OUTPUT', help='.pth, .pt, .safetensors or .onnx')
    add('--layout', choices=('plain', 'udl'), default='plain', help='plain: the SR network alone; udl: everything in '
        'INPUT, with the map (%(default)s)')
    add('--fp16', action='store_true', help='.onnx with weights, input and outputs in float16')
    add_reading_options(parser)
    add('--force', action='store_true', help='replace OUTPUT if it exists')
    add('--quiet', action='store_true', help='show warnings and errors only')
    args = parser.parse_args(argv)
    if args.fp16 and not args.output.endswith('.onnx'):
        parser.error('--fp16 is for .onnx')
    return args


def run(args: argparse.Namespace) -> int:
    """Converts the file and prints what was written.

    Raises:
        UserError: INPUT cannot be read, or OUTPUT exists and there is no --force.
    """
    from udl_plugin.checkpoints.export import export_network  # these import torch, which takes seconds
    from udl_plugin.checkpoints.network_file import load_network_file
    output = os.path.normpath(args.output)
    if os.path.lexists(output) and not args.force:
        raise UserError(f"'{output}' exists already; choose another name or give --force.")
    model = load_network_file(args.input, args.param_key, read_network_g(args.opt))
    print_notes(model.notes)
    checked = export_network(output, model, args.layout, args.fp16)
    if not args.quiet:
        written = model.base() if args.layout == 'plain' else model
        kind = {'plain': 'the plain network', 'step 1': 'the network of step 1, with its variance head',
                'step 2': 'both networks of step 2'}[written.stage]
        print(f'{output}: {kind}, {sum(tensor.numel() for tensor in written.state_dict.values()):,} values')
        print('In a yml:')
        print(textwrap.indent(yaml.safe_dump({'network_g': written.network_g}, sort_keys=False), '  '), end='')
        for line in checked:
            print(line)
    return 0


if __name__ == '__main__':
    sys.exit(main())
