"""The command `udl-upscale`: upscales images with a network file. See udl_plugin/inference/upscaler.py."""
from __future__ import annotations

import argparse
import collections
import functools
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from udl_plugin.cli.common import (
    add_reading_options,
    expand_globs,
    make_parser,
    path_arg,
    positive_int,
    print_notes,
    read_network_g,
    run_command,
    show,
)
from udl_plugin.errors import UserError
from udl_plugin.utils.atomic_io import atomic_write

if TYPE_CHECKING:
    from udl_plugin.inference.upscaler import UpscaleResult

ABOUT = """\
Upscales images, or every image in a folder. Architecture and scale are read from the network file.

  udl-upscale photo.png photo_x4.png --model edsr_s.pth
  udl-upscale one.png two.jpg results/ --model edsr_s.pth
  udl-upscale photos/ results/ --model experiments/train_udl_step2/models/net_g_latest.pth --uncertainty

The last one writes results/NAME.png, NAME_uncertainty.png (the map as a picture: blue is certain, red uncertain) and
NAME_log_var.npy (the map, float32 (C, H, W): log of the error's scale in 8-bit levels). Bit depth, grey, alpha and ICC
profile are kept; other metadata, such as EXIF, is not.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0; 1 if images were skipped; 2 for bad input; 130 after Ctrl-C."""
    return run_command('udl-upscale', parse(argv), run,
                       'the images written so far are complete; the same command with --resume makes the rest')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments; exits with status 2 if they are wrong."""
    parser = make_parser('udl-upscale', ABOUT)
    add = parser.add_argument
    add('inputs', nargs='+', type=path_arg, metavar='INPUT', help='an image, or a folder of images')
    add('output', type=path_arg, metavar='OUTPUT', help='a .png file for one image, otherwise a folder')
    add('--model', type=path_arg, required=True, metavar='FILE', help='.pth, .pt or .safetensors')
    add_reading_options(parser)
    add('--uncertainty', action='store_true', help='write the map too; requires the checkpoint of step 1 or 2 itself')
    add('--uncertainty-limits', nargs=2, type=float, metavar=('LOW', 'HIGH'),
        help="values of blue and red, the same for all pictures (default: each map's minimum and maximum)")
    add('--html', action='store_true', help='write NAME.html too: a page to compare the result with bicubic, and with '
        '--uncertainty with its expected error')
    add('--tile', type=positive_int, metavar='N',
        help='process tiles of N x N LR pixels, to save memory (default: the full image, or tiles if memory is short)')
    add('--self-ensemble', action='store_true', help='average over eight flips and rotations; takes 8 times as long')
    add('--device', default='auto', metavar='NAME',
        help='such as cpu, cuda:1 or mps (default: the GPU if there is one)')
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument('--resume', action='store_true',
                          help='keep the results of an interrupted run with the same options, make the rest')
    existing.add_argument('--force', action='store_true', help='replace results that exist')
    add('--quiet', action='store_true', help='show warnings and errors only')
    args = parser.parse_args(argv)
    limits = args.uncertainty_limits
    if limits and not (args.uncertainty and limits[0] < limits[1]):
        parser.error('--uncertainty-limits requires --uncertainty, and LOW below HIGH')
    return args


def run(args: argparse.Namespace) -> int:
    """Upscales the images; skips those of a folder that cannot be upscaled, with a line for each.

    Raises:
        UserError: wrong arguments, or the only image cannot be upscaled.
        OSError: a result cannot be written.
    """
    found = find_images(args)
    images = {source: target for source, target in found.items() if not (args.resume and is_finished(target, args))}
    if len(images) < len(found) and not args.quiet:
        print(f'--resume: {len(found) - len(images)} of {len(found)} results exist already and are kept.')
    if not images:
        return 0
    from udl_plugin.inference.comparison_page import build_upscale_page  # imports torch, which takes seconds
    from udl_plugin.inference.upscaler import load
    upscaler = load(
        args.model, args.device, uncertainty=args.uncertainty, tile=args.tile, self_ensemble=args.self_ensemble,
        uncertainty_loss='ESU',  # of no effect: the map is written, not the expected error
        param_key=args.param_key, network_g=read_network_g(args.opt))
    print_notes(notes := list(upscaler.notes))
    progress = functools.partial(args.progress, description='Upscaling', unit='tiles') if len(images) == 1 else None
    failed = []
    for source, target in images.items() if progress else args.progress(images.items(), len(images), 'Upscaling'):
        try:
            result = upscaler.upscale(source, progress)
        except UserError as err:
            message = str(err) if str(source) in str(err) else f"'{source}': {err}"
            if len(images) == 1:
                raise UserError(message) from err
            failed.append(message)
        else:
            print_notes(note for note in upscaler.notes if note not in notes)  # that memory is short
            notes = list(upscaler.notes)
            profile = find_profile(source, is_grey=result.image.ndim == 2)
            if args.html:  # before the image, so that an image that exists has its page
                page = build_upscale_page(source, result, upscaler, args.model)
                atomic_write(target.with_suffix('.html'), page.encode())
            write_result(target, result, args.uncertainty_limits, profile)
    if failed:
        show(f'udl-upscale: images skipped: {len(failed)} of {len(images)}', failed, file=sys.stderr)
    if not args.quiet:
        number = len(images) - len(failed)
        print(f'{upscaler.architecture} x{upscaler.scale}, {upscaler.stage}: {number} image{"s" * (number != 1)}, '
              f'{args.output}')
    return 1 if failed else 0


def find_images(args: argparse.Namespace) -> dict[Path, Path]:
    """Maps each input image to its output file.

    Raises:
        UserError: no input; an output that exists, without --resume or --force, or is itself an input, or belongs to
            two images.
    """
    from udl_plugin.data.image_io import SUFFIXES, list_images
    inputs, target = list(map(Path, expand_globs(args.inputs))), Path(os.path.normpath(args.output))
    missing = next((path for path in inputs if not path.exists()), None)
    if missing:
        raise UserError(f"there is no '{missing}' (in {Path.cwd()}).")
    is_image = target.suffix.lower() in SUFFIXES and not target.is_dir()
    if len(inputs) == 1 and not inputs[0].is_dir() and is_image:
        if target.suffix.lower() != '.png':
            raise UserError(f"'{target}': results are .png files, which keep every value; or name a folder.")
        images = {inputs[0]: target}
    elif is_image or target.is_file():
        what = f"images in '{inputs[0]}'" if inputs[0].is_dir() else f'results of {len(inputs)} inputs'
        raise UserError(f"'{target}' is a file; a folder is needed for the {what}.")
    else:
        found = {path: name for source in inputs for name, path in
                 (list_images(source) if source.is_dir() else {source.stem: source}).items()}
        images = {path: target / f'{name}.png' for path, name in found.items()}
    written = [path for target in images.values() for path in output_files(target, args.uncertainty, args.html)]
    sources = {path.resolve() for path in images}
    for path, count in collections.Counter(written).items():
        if count > 1:
            raise UserError(f"two images would be written to '{path}'; rename one of them.")
        if path.resolve() in sources:
            raise UserError(f"'{path}' is one of the images to be upscaled; choose another OUTPUT.")
        if os.path.lexists(path) and not (args.resume or args.force):
            if len(inputs) == 1 and path == target:  # perhaps the second of two images
                raise UserError(f"'{path}' exists already, and it is the OUTPUT. To upscale it too, name a folder as "
                                'OUTPUT, after the images; to replace it, give --force.')
            raise UserError(f"'{path}' exists already; choose another OUTPUT, or give --resume to keep what is there "
                            'and make the rest, or --force to replace it.')
    return images


def is_finished(image: Path, args: argparse.Namespace) -> bool:
    """Whether all files of a result exist; each is written atomically."""
    return all(path.exists() for path in output_files(image, args.uncertainty, args.html))


def output_files(image: Path, uncertainty: bool = True, html: bool = False) -> list[Path]:
    """Returns the files of one result: the image; with `uncertainty`, the map's picture and the map; the page."""
    ends = ['_uncertainty.png', '_log_var.npy'] * uncertainty + ['.html'] * html
    return [image, *(image.with_name(image.stem + end) for end in ends)]


def find_profile(source: Path, is_grey: bool) -> bytes:
    """The ICC profile for the result of an image; empty, with a note, if it is for other colours than the result's."""
    from udl_plugin.data.image_io import read_icc_profile
    profile = read_icc_profile(source)
    if profile and profile[16:20] != (b'GRAY' if is_grey else b'RGB '):  # its header says for which colours it is
        colours = profile[16:20].decode('ascii', 'replace').strip()
        print_notes([f"'{source}': its ICC profile is for {colours} images; the result, which is "
                     f'{"grey" if is_grey else "RGB"}, has none.'])
        return b''
    return profile


def write_result(target: Path, result: UpscaleResult, limits: Sequence[float] | None = None,
                 icc_profile: bytes = b'') -> None:
    """Writes the files of one result. The image comes last, so an image that exists has its map."""
    import numpy as np

    from udl_plugin.inference.visualize import encode_png, swap_red_blue, uncertainty_picture
    image, picture, log_var = output_files(target)
    if result.log_var is not None:
        raw = io.BytesIO()
        np.save(raw, result.log_var)
        atomic_write(log_var, raw.getvalue())
        atomic_write(picture, encode_png(uncertainty_picture(result.log_var, limits)))
    atomic_write(image, encode_png(swap_red_blue(result.image), icc_profile))


if __name__ == '__main__':
    sys.exit(main())
