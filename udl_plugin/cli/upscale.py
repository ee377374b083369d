"""The command `udl-upscale`: images through a network's file. See udl_plugin/inference/upscaler.py."""
import argparse
import collections
import errno
import io
import math
import os
import sys
from pathlib import Path

import numpy as np

from udl_plugin.cli.common import add_reading_options, path_arg, positive_int, read, run_command, show
from udl_plugin.data.image_io import SUFFIXES, list_images
from udl_plugin.errors import UserError
from udl_plugin.inference.visualize import encode_png, swap_red_blue, uncertainty_picture
from udl_plugin.utils.atomic_io import atomic_write

ABOUT = """\
Upscales an image, or the images in a folder, with a network from a file; its kind and scale are read from there.

  udl-upscale photo.png photo_x4.png --model edsr_s.pth
  udl-upscale photos/ results/ --model experiments/train_udl_step2/models/net_g_latest.pth --uncertainty

The second writes results/NAME.png, NAME_uncertainty.png (the map as a picture: blue sure, red not) and NAME_log_var.npy
(the map, float32 (C, H, W): log of the error's scale in 8-bit levels). Grey stays grey, 16 bits stay 16, alpha is kept.
"""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # the next image would end the same way


def main(argv=None):
    """Runs the command. Returns the exit status: 0; 1 where images were left out; 2 for bad input; 130 after Ctrl-C."""
    args = parse(argv)
    return run_command('udl-upscale', args, run, 'what was written is whole')


def parse(argv):
    parser = argparse.ArgumentParser(prog='udl-upscale', description=ABOUT, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('input', type=path_arg, metavar='INPUT', help='an image, or a folder of images')
    add('output', type=path_arg, metavar='OUTPUT', help='a .png file for an image, otherwise a folder')
    add('--model', type=path_arg, required=True, metavar='FILE', help='.pth, .pt or .safetensors')
    add_reading_options(parser)
    add('--uncertainty', action='store_true', help='write the map too; wants the checkpoint of step 1 or 2 itself')
    add('--uncertainty-limits', nargs=2, type=float, metavar=('LOW', 'HIGH'),
        help="of all pictures of maps, from blue to red, so that they can be compared (default: each map's own)")
    add('--tile', type=positive_int, metavar='N', help='show the network N x N pixels at once: less memory (default: all)')
    add('--self-ensemble', action='store_true', help='mean over eight flips and rotations: eight times as long')
    add('--device', metavar='NAME', help='such as cpu or cuda:1 (default: the GPU where there is one)')
    add('--force', action='store_true', help='replace results that exist')
    add('--quiet', action='store_true', help='show warnings and errors only')
    args = parser.parse_args(argv)
    limits = args.uncertainty_limits
    if limits and not (args.uncertainty and limits[0] < limits[1]):
        parser.error('--uncertainty-limits are a lower and a higher number, and want --uncertainty')
    return args


def run(args):
    images = find(args)
    from udl_plugin.inference.upscaler import MIN_TILE, Upscaler, find_device  # imports torch, which takes seconds
    if args.tile is not None and args.tile < MIN_TILE:
        raise UserError(f'--tile {args.tile} is too small; use {MIN_TILE} or more.')
    model = read(args.model, args)
    device = find_device(args.device or 'auto', '--device')
    try:
        upscaler = Upscaler(model, device, args.tile, args.self_ensemble, args.uncertainty)
    except UserError as err:
        raise UserError(f"'{args.model}': {err}") from err
    warn_about_tile_seams(upscaler)
    failed = []
    pairs = images.items() if len(images) == 1 else args.progress(images.items(), len(images), 'Upscaling')
    for source, target in pairs:
        try:
            progress = None if len(images) > 1 else \
                lambda pieces, number: args.progress(pieces, number, 'Upscaling', 'pieces')
            write(target, upscaler.upscale(source, progress), args.uncertainty_limits)
        except (UserError, MemoryError, OSError) as err:
            if len(images) == 1 or getattr(err, 'errno', None) in FULL:
                raise UserError(describe(source, err)) from err
            failed.append(describe(source, err))
    if failed:
        show(f'udl-upscale: images left out: {len(failed)} of {len(images)}', failed, file=sys.stderr)
    if not args.quiet:
        number = len(images) - len(failed)
        print(f'{model.architecture} x{upscaler.scale}, {model.stage}: {number} image{"s" * (number != 1)}, {args.output}')
    return 1 if failed else 0


def describe(source, err):
    """A line for an image that was left out."""
    message = f"'{err.filename}': {err.strerror}" if isinstance(err, OSError) and err.filename else str(err)
    return message if str(source) in message else f"'{source}': {message or 'not enough memory'}"


def find(args):
    """Each image, and where its result goes."""
    source, target = Path(args.input), Path(os.path.normpath(args.output))
    if source.is_dir():
        if target.is_file() or (not target.is_dir() and target.suffix.lower() in SUFFIXES):
            raise UserError(f"'{target}' is a file; a folder is needed for the images in '{source}'.")
        images = {path: target / f'{name}.png' for name, path in list_images(source).items()}
    elif not source.exists():
        raise UserError(f"there is no '{source}' (seen from {Path.cwd()}).")
    elif target.suffix.lower() in SUFFIXES and not target.is_dir():
        if target.suffix.lower() != '.png':
            raise UserError(f"'{target}': results are .png files, which keep every value; or name a folder.")
        images = {source: target}
    else:
        images = {source: target / f'{source.stem}.png'}
    written = [path for target in images.values() for path in targets(target, args.uncertainty)]
    sources = {path.resolve() for path in images}
    for path, times in collections.Counter(written).items():
        if times > 1:
            raise UserError(f"two results would be '{path}'; rename an image.")
        if path.resolve() in sources:
            raise UserError(f"'{path}' is one of the images to be upscaled; choose another OUTPUT.")
    existing = [path for path in written if os.path.lexists(path)]
    if existing and not args.force:
        raise UserError(f"'{existing[0]}' exists already" + (f', and {len(existing) - 1} more' * (len(existing) > 1))
                         + '; choose another OUTPUT or give --force.')
    return images


def targets(image, uncertainty=True):
    """The files of one result: the image, the map's picture, the map."""
    return [image] + [image.with_name(image.stem + end) for end in ('_uncertainty.png', '_log_var.npy')] * uncertainty


def write(target, upscaled, limits=None):
    image, picture, log_var = targets(target)
    if upscaled.log_var is not None:
        raw = io.BytesIO()
        np.save(raw, upscaled.log_var)
        atomic_write(log_var, raw.getvalue())
        atomic_write(picture, encode_png(uncertainty_picture(upscaled.log_var, limits)))
    atomic_write(image, encode_png(swap_red_blue(upscaled.image)))  # last: where it is, the map is


def warn_about_tile_seams(upscaler):
    """Says so where tiles may be seen in the result."""
    from udl_plugin.inference.upscaler import ALIGN
    if upscaler.overlap is None or upscaler.overlap >= (upscaler.receptive_radius or math.inf):
        return
    note = f'Note: tiles overlap by {upscaler.overlap} pixels on each side, and how far the network sees '
    note += 'is not known' if upscaler.receptive_radius is None else f'is {upscaler.receptive_radius}'
    note += ': the result differs slightly from that without --tile.'
    if upscaler.receptive_radius is not None:
        note += f' --tile {4 * -(-upscaler.receptive_radius // ALIGN) * ALIGN} gives the same.'
    print(note, file=sys.stderr)


if __name__ == '__main__':
    sys.exit(main())
