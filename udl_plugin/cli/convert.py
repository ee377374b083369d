"""The command `udl-convert`: writes a network in another format. See udl_plugin/checkpoints/{export,pretrained}.py."""
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

An OUTPUT that ends in / is a folder to share: model.safetensors with everything in INPUT, config.json and a model card.
udl_plugin.from_pretrained reads it, there or from the Hugging Face Hub:

  udl-convert net_g_latest.pth edsr_s_x4/ --scores results/compare/scores.csv
  udl-convert net_g_latest.pth edsr_s_x4/ --license apache-2.0 --push USER/edsr_s_x4

OUTPUT records its network_g, which is also printed for use in a yml.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    return run_command('udl-convert', parse(argv), run, 'OUTPUT is complete or unchanged')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments; exits with status 2 if they are wrong."""
    parser = make_parser('udl-convert', ABOUT)
    add = parser.add_argument
    add('input', type=path_arg, metavar='INPUT', help='.pth, .pt, .safetensors or such a folder')
    add('output', type=path_arg, metavar='OUTPUT', help='.pth, .pt, .safetensors, .onnx, or a folder: NAME/')
    add('--layout', choices=('plain', 'udl'), help='plain: the SR network alone (default for a file); udl: everything '
        'in INPUT, with the map (default for a folder)')
    add('--fp16', action='store_true', help='.onnx with weights, input and outputs in float16')
    add_reading_options(parser)
    share = parser.add_argument_group('a folder to share')
    of_folder = [
        share.add_argument('--yml', type=path_arg, metavar='FILE.yml',
                           help='include the yml that trained the network, as it is, with the paths in it'),
        share.add_argument('--scores', type=path_arg, metavar='FILE.csv',
                           help='for the card: scores.csv of udl-compare'),
        share.add_argument('--license', metavar='ID', help='for the card: an identifier such as apache-2.0'),
        share.add_argument('--push', metavar='USER/NAME',
                           help='also upload it to the Hugging Face Hub; hf auth login logs in'),
        share.add_argument('--private', action='store_true', help='with --push: a new repository is private')]
    add('--force', action='store_true', help='replace OUTPUT if it exists')
    add('--quiet', action='store_true', help='show warnings and errors only')
    args = parser.parse_args(argv)
    args.is_folder = args.output.endswith(('/', os.sep)) or os.path.isdir(args.output)
    for action in of_folder:
        if getattr(args, action.dest) and not args.is_folder:
            parser.error(f'{action.option_strings[0]} is for a folder; let OUTPUT end in /')
    if args.private and not args.push:
        parser.error('--private requires --push')
    if args.fp16 and not args.output.endswith('.onnx'):
        parser.error('--fp16 is for .onnx')
    args.layout = args.layout or ('udl' if args.is_folder else 'plain')
    return args


def run(args: argparse.Namespace) -> int:
    """Converts the file and prints what was written.

    Raises:
        UserError: INPUT cannot be read, OUTPUT exists and there is no --force, or the upload fails.
    """
    from udl_plugin.checkpoints import pretrained  # these import torch, which takes seconds
    from udl_plugin.checkpoints.export import export_network
    from udl_plugin.checkpoints.network_file import load_network_file
    output = os.path.normpath(args.output)
    if args.push is not None:
        pretrained.check_hub_id(args.push)
    if os.path.lexists(output) and not args.force and not args.is_folder:
        raise UserError(f"'{output}' exists already; choose another name or give --force.")
    model = load_network_file(args.input, args.param_key, read_network_g(args.opt))
    print_notes(model.notes)
    written = model.base() if args.layout == 'plain' else model
    if args.is_folder:
        pretrained.save_pretrained(written, output, yml=args.yml, scores=args.scores, license=args.license,
                                   repo_id=args.push, force=args.force)
        lines = [f'Files: {", ".join(sorted(os.listdir(output)))}']
    else:
        lines = export_network(output, model, args.layout, args.fp16)
    if not args.quiet:
        kind = {'plain': 'the plain network', 'step 1': 'the network of step 1, with its variance head',
                'step 2': 'both networks of step 2'}[written.stage]
        print(f'{output}: {kind}, {sum(tensor.numel() for tensor in written.state_dict.values()):,} values')
        print('In a yml:')
        print(textwrap.indent(yaml.safe_dump({'network_g': written.network_g}, sort_keys=False), '  '), end='')
        for line in lines:
            print(line)
    if args.push is not None:
        address = pretrained.upload_folder(output, args.push, private=args.private or None)
        if not args.quiet:
            print(f'Uploaded: {address}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
