"""The command `udl-upscale`: upscales images with a network file. See udl_plugin/inference/upscaler.py."""
from __future__ import annotations

import argparse
import collections
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

MAP_FILES = ('_expected_error.png', '_expected_error.npy', '_log_var.npy')  # after the name of the image
ABOUT = """\
Upscales images, or every image in a folder. Architecture and scale are read from the network file. Without --model, a
small network that comes with the package upscales by 2; edsr_xs_x3 and edsr_xs_x4 are the others.

  udl-upscale photo.png photo_x2.png --uncertainty
  udl-upscale one.png two.jpg results/ --model edsr_s.pth
  udl-upscale photos/ results/ --model experiments/train_udl_step2/models/net_g_latest.pth --uncertainty
  udl-upscale --calibrate hr_photos/ --model net_g_latest.pth calibrated.pth

With --uncertainty, beside each NAME.png: NAME_expected_error.png, the absolute error that the network expects, as a
picture with a colour bar in 8-bit levels; NAME_expected_error.npy, the same as float32 (H, W, C); and
NAME_log_var.npy, the network's map, float32 (C, H, W). The map of a step-2 file is about the SR image of step 1.
--calibrate fits a factor on the expected error, so that it agrees with the errors on HR photos, and writes a copy of
the network with it. Bit depth, grey, alpha and ICC profile are kept; other metadata, such as EXIF, is not.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0; 1 if images were skipped; 2 for bad input; 130 after Ctrl-C."""
    return run_command('udl-upscale', parse(argv), run,
                       'the images written so far are complete; the same command with --resume makes the rest')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments; exits with status 2 if they are wrong."""
    parser = make_parser('udl-upscale', ABOUT)
    add = parser.add_argument
    add('inputs', nargs='*', type=path_arg, metavar='INPUT', help='an image, or a folder of images')
    add('output', type=path_arg, metavar='OUTPUT',
        help='a .png file for one image, otherwise a folder; with --calibrate, a network file')
    add('--model', type=path_arg, default='edsr_xs_x2', metavar='FILE',
        help='.pth, .pt or .safetensors, or a network of the package (default: %(default)s)')
    add_reading_options(parser)
    add('--uncertainty', action='store_true', help='write the map too; requires the checkpoint of step 1 or 2 itself')
    add('--uncertainty-limits', nargs=2, type=float, metavar=('LOW', 'HIGH'),
        help='expected errors in the first and the last colour, in 8-bit levels, the same for all pictures '
        '(default: 0, and a round number near the largest of the image)')
    add('--colormap', choices=('inferno', 'authors'), default='inferno',
        help="authors: the paper's picture, JET between the map's minimum and maximum (default: %(default)s)")
    add('--uncertainty-loss', choices=('ESU', 'EU', 'GaussianNLL'),
        help='loss that trained the variance head (default: the one that the file records, otherwise ESU)')
    add('--calibrate', type=path_arg, metavar='DIR',
        help='fit the expected error to the errors on the HR photos in DIR; write the network to OUTPUT')
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
    args = parser.parse_intermixed_args(argv)  # INPUT is optional with --calibrate, wherever options stand
    limits = args.uncertainty_limits
    if limits and not (args.uncertainty and 0 <= limits[0] < limits[1]):
        parser.error('--uncertainty-limits requires --uncertainty, and 0 or more for LOW, below HIGH')
    if bool(args.calibrate) == bool(args.inputs):
        parser.error('--calibrate takes OUTPUT only, a network file' if args.calibrate else
                     'expected INPUT and OUTPUT: an image or a folder, and where the result goes')
    return args


def run(args: argparse.Namespace) -> int:
    """Upscales the images; skips those of a folder that cannot be upscaled, with a line for each.

    Raises:
        UserError: wrong arguments, or the only image cannot be upscaled.
        OSError: a result cannot be written.
    """
    if args.calibrate:
        return calibrate(args)
    found = find_images(args)
    images = {source: target for source, target in found.items() if not (args.resume and is_finished(target, args))}
    if len(images) < len(found) and not args.quiet:
        print(f'--resume: {len(found) - len(images)} of {len(found)} results exist already and are kept.')
    if not images:
        return 0
    from udl_plugin.inference.upscaler import load  # imports torch, which takes seconds
    upscaler = load(
        args.model, args.device, uncertainty=args.uncertainty, tile=args.tile, self_ensemble=args.self_ensemble,
        uncertainty_loss=args.uncertainty_loss,
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
                from udl_plugin.inference.comparison_page import build_upscale_page
                page = build_upscale_page(source, result, upscaler, args.model)
                atomic_write(target.with_suffix('.html'), page.encode())
            maps = None
            if args.uncertainty:
                maps = {**upscaler.map_unit, 'limits': args.uncertainty_limits, 'colormap': args.colormap}
            write_result(target, result, maps, profile)
            if maps and not args.quiet:
                print(f'{target}: expects to be off by {result.expected_error.mean():.1f} levels on average; map: '
                      f'{output_files(target)[1].name}')
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
    """Returns the files of one result: the image; with `uncertainty`, those of the map; the page."""
    ends = MAP_FILES * uncertainty + ('.html',) * html
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


def write_result(target: Path, result: UpscaleResult, maps: Mapping[str, Any] | None = None,
                 icc_profile: bytes = b'') -> None:
    """Writes the files of one result; of its map, if `maps` has the other arguments of `encode_map_files`."""
    from udl_plugin.inference.visualize import encode_map_files, encode_png, swap_red_blue
    if maps is not None and result.log_var is not None:  # before the image, so that an image that exists has its map
        for end, content in encode_map_files(result.log_var, **maps).items():
            atomic_write(target.with_name(target.stem + end), content)
    atomic_write(target, encode_png(swap_red_blue(result.image), icc_profile))


def calibrate(args: argparse.Namespace) -> int:
    """Writes a copy of a network with the factor that fits its expected error to HR photos.

    Raises:
        UserError: no variance head, no usable photo, or OUTPUT exists or is not a network file.
    """
    from udl_plugin.checkpoints.export import SUFFIXES, export_network
    from udl_plugin.checkpoints.network_file import find_file, load_network_file
    from udl_plugin.data.image_io import list_images
    target, photos = Path(args.output), list(list_images(args.calibrate).values())
    if target.suffix not in SUFFIXES[:3]:
        raise UserError(f"'{target}': the suffix must be one of {', '.join(SUFFIXES[:3])}: a network is written.")
    if os.path.lexists(target) and (not args.force or os.path.samefile(target, find_file(args.model))):
        raise UserError(f"'{target}' exists already; choose another OUTPUT, or give --force to replace it, unless it "
                        'is the network itself.')
    from udl_plugin.inference.calibrate import calibrate as fit
    from udl_plugin.inference.upscaler import Upscaler, find_device
    file = load_network_file(args.model, args.param_key, read_network_g(args.opt))
    try:
        upscaler = Upscaler(file, find_device(args.device), args.tile, args.self_ensemble, uncertainty=True,
                            uncertainty_loss=args.uncertainty_loss)
    except UserError as err:
        raise UserError(f"'{args.model}': {err}") from err
    print_notes(upscaler.notes)
    result = fit(upscaler, args.progress(photos, len(photos), 'Calibrating'))
    file.uncertainty_loss, file.error_scale = upscaler.uncertainty_loss, result.error_scale
    export_network(target, file, 'udl')
    if not args.quiet:
        print(f'{result.photos} photo{"s" * (result.photos != 1)}, x{upscaler.scale}, in 8-bit levels: expected error '
              f'{result.expected:.2f}, observed {result.observed:.2f}; factor {result.error_scale:.3f}.\n'
              f'Calibration error, relative to the expected error: {result.before:.3f} before, {result.after:.3f} after'
              f'{" (each photo with the factor of the others)" if result.photos > 1 else ""}.\n{target}')
    if result.after > result.before:
        print_notes(['the calibration error grew: the means agree now, but one factor does not fit all photos. Compare '
                     'maps with --uncertainty-limits before you use it, or take more photos.'])
    return 0


if __name__ == '__main__':
    sys.exit(main())
