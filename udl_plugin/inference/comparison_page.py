"""A page to compare images: one HTML file with a divider between any two, linked zoom, errors and their values.

The images are in the page, losslessly, and it loads nothing else. What the page does is in `comparison_page.html`.
"""
from __future__ import annotations

import base64
import html
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, features

from udl_plugin.data.image_io import read_full_image
from udl_plugin.errors import UserError
from udl_plugin.inference.html_table import SORT_SCRIPT, TABLE_STYLE, HtmlTable
from udl_plugin.inference.provenance import list_provenance, provenance_to_html
from udl_plugin.inference.upscaler import Upscaler, UpscaleResult
from udl_plugin.inference.visualize import OWNERS, absolute_error, describe_owner, heat_map, round_limit, swap_red_blue
from udl_plugin.utils.imresize import imresize

TEMPLATE = Path(__file__).with_suffix('.html')
MAX_BYTES = 25_000_000  # of a page
MIN_CROP = 64  # pixels; a page of less would not be of use
STEPS = 1000  # of an error map, from 0 to the limit of the scale
MAX_CODE = 2**16 - 1  # two bytes for each error
WEBP_MAX = 16383  # pixels on a side
Box = tuple[int, int, int, int]  # x, y, width, height


class PageImage(NamedTuple):
    """An image to compare.

    Attributes:
        label: Such as `bicubic`, or the name of a network.
        image: uint8 RGB `(H, W, 3)`, or grey `(H, W)`.
        expected_error: `(H, W)`, in 8-bit levels.
        owner: Whose errors these are; see `visualize.OWNERS`.
        truth: The ground truth, like `image`; with it, the page shows the true error.
    """

    label: str
    image: np.ndarray
    expected_error: np.ndarray | None = None
    owner: str = OWNERS['step 1']
    truth: np.ndarray | None = None


def build_page(title: str, images: Sequence[PageImage], provenance: Iterable[tuple[str, str]],
               tables: Sequence[HtmlTable] = (), notes: Sequence[str] = (), boxes: Sequence[Box] = ()) -> str:
    """The page, of at most `MAX_BYTES`.

    Args:
        title: Its heading.
        images: Of one size. The page begins with the first at the left of the divider and the second at the right.
        provenance: See `list_provenance`.
        tables: Shown below the images.
        notes: Sentences about the images, a paragraph each.
        boxes: What is shown of images that are too large for a page. None: their centre.

    Raises:
        UserError: the boxes, or the tables, are too large.
        ValueError: the images differ in size.
    """
    height, width = images[0].image.shape[:2]
    layers = _build_layers(images)
    if any(layer[key].shape[:2] != (height, width) for layer in layers for key in ('image', 'error') if key in layer):
        raise ValueError('the images of a page must have one size.')
    errors = [layer['error'] for layer in layers if 'error' in layer]
    limit = round_limit(*errors) if errors else 1.0
    parts = {
        'title': html.escape(title), 'table_style': TABLE_STYLE, 'sort_script': SORT_SCRIPT,
        'scale': _build_scale(limit) if errors else '',
        'tables': '\n'.join(table.to_html() for table in tables), 'provenance': provenance_to_html(provenance)}
    about = [*notes, *_describe_errors(images, limit)]
    room = MAX_BYTES - sum(map(len, parts.values())) - TEMPLATE.stat().st_size - 10_000  # and names of layers
    regions, encoded = _fit_regions(layers, (width, height), boxes, limit, room)
    if regions != [(0, 0, width, height)]:
        shown = ', '.join(f'{w} x {h} at {x},{y}' for x, y, w, h in regions)
        about.insert(0, f'The images, {width} x {height}, are too large for one page; it has these parts of them: '
                        f'{shown}.')
    colors = heat_map(np.arange(256)[:, None], (0, 255))[:, 0, ::-1]
    data = {'regions': regions, 'layers': encoded, 'limit': limit, 'step': limit / STEPS,
            'colors': base64.b64encode(colors.tobytes()).decode()}
    parts['data'] = json.dumps(data).replace('<', '\\u003c')  # so that no label ends the script
    parts['about'] = ''.join(f'<p>{html.escape(text)}</p>\n' for text in about)
    template = TEMPLATE.read_text(encoding='utf-8')
    return re.sub(r'<!--(\w+)-->', lambda match: parts[match[1]], template)  # in one pass: not in what was put in


def build_upscale_page(source: str | os.PathLike[str], result: UpscaleResult, upscaler: Upscaler,
                       model: str | os.PathLike[str]) -> str:
    """The page of an upscaled image: bicubic, the SR image and, if there is one, its expected error.

    Args:
        source: The image that was upscaled.
        result: From `upscaler.upscale(source)`.
        model: The network file, for the provenance.

    Raises:
        UserError: the image cannot be read.
    """
    lq = swap_red_blue(read_full_image(source))
    notes = ["Bicubic is MATLAB's."]
    if result.image.dtype != np.uint8:
        notes.append('Images of 16 bits are rounded to 8 bits here.')
    if result.image.shape[2:] == (4,):
        notes.append('Alpha is not shown.')
    error = None
    if result.expected_error is not None:
        error = result.expected_error.mean(axis=2)
        if result.expected_error.shape[2] == 1:
            notes.append('The network upscales the luma; the expected error is that of the luma.')
    name = f'{upscaler.architecture} x{upscaler.scale}, {upscaler.stage}'
    images = [PageImage('bicubic', imresize(_to_8_bits(lq), upscaler.scale)),
              PageImage(name, _to_8_bits(result.image), error, describe_owner(upscaler.stage, upscaler.error_scale))]
    return build_page(f'{Path(source).name}, upscaled', images, list_provenance([model, source]), notes=notes)


def encode_lossless(image: np.ndarray) -> str:
    """A uint8 image, grey `(H, W)` or RGB `(H, W, 3)`, as a data URL: PNG, or lossless WebP where that is smaller."""
    picture, files = Image.fromarray(np.ascontiguousarray(image)), {}
    formats: dict[str, dict[str, Any]] = {'png': {}}
    if features.check('webp') and max(picture.size) <= WEBP_MAX:
        formats['webp'] = {'lossless': True, 'method': 2, 'quality': 50}  # more takes long and saves 1 %
    for name, options in formats.items():
        buffer = io.BytesIO()
        picture.save(buffer, name, **options)
        files[name] = buffer.getvalue()
    best = min(files, key=lambda name: len(files[name]))
    return f'data:image/{best};base64,{base64.b64encode(files[best]).decode()}'


def encode_error(error: np.ndarray, limit: float) -> np.ndarray:
    """Errors `(H, W)` as uint8 `(H, W, 3)`: their number of steps of `limit / STEPS` levels, as two bytes and a 0.

    Numbers from `MAX_CODE` on become `MAX_CODE`.
    """
    codes = np.nan_to_num(error / (limit / STEPS), nan=MAX_CODE, posinf=MAX_CODE).round().clip(0, MAX_CODE)
    codes = codes.astype(np.uint16)
    return np.stack([codes >> 8, codes & 255, np.zeros_like(codes)], axis=2).astype(np.uint8)


def describe_owners(owners: Mapping[str, str]) -> str:
    """Says whose errors the maps describe.

    Args:
        owners: Label of a network to a value of `visualize.OWNERS`.
    """
    return ' '.join(f'The expected error of {" and ".join(label for label in owners if owners[label] == owner)} '
                    f'is that of {owner}.' for owner in dict.fromkeys(owners.values()))


def _to_8_bits(image: np.ndarray) -> np.ndarray:
    """An array of 8 or 16 bits without its alpha: uint8."""
    image = image[:, :, :3] if image.ndim == 3 else image
    return image if image.dtype == np.uint8 else (image / 257).round().astype(np.uint8)


def _build_layers(images: Sequence[PageImage]) -> list[dict[str, Any]]:
    """What the page can show, in the order of its keys: images, ground truths, errors.

    `image` is what is stored of an image, `error` that of an error. The page computes true errors from the layers `of`
    and `truth`, so that only the limit of the scale depends on their `error`.
    """
    layers: list[dict[str, Any]] = [{'label': one.label, 'kind': 'image', 'network': one.label, 'image': one.image}
                                    for one in images]
    truths: list[np.ndarray] = []  # of a network of one channel, the ground truth is grey
    for one in images:
        if one.truth is not None and not any(np.array_equal(one.truth, truth) for truth in truths):
            truths.append(one.truth)
    for truth in truths:
        label = 'ground truth' if len(truths) == 1 or truth.ndim == 3 else 'ground truth, grey'
        layers.append({'label': label, 'kind': 'image', 'network': '', 'image': truth})
    # the network's own errors first, those of bicubic last
    for number in sorted(range(len(images)), key=lambda number: images[number].expected_error is None):
        one = images[number]
        if one.expected_error is not None:
            layers.append({'label': f'expected error of {one.label}', 'kind': 'expected error', 'network': one.label,
                           'error': one.expected_error})
        if one.truth is not None:
            found = next(place for place, truth in enumerate(truths) if np.array_equal(one.truth, truth))
            layers.append({'label': f'true error of {one.label}', 'kind': 'true error', 'network': one.label,
                           'of': number, 'truth': len(images) + found, 'error': absolute_error(one.image, one.truth)})
    return layers


def _fit_regions(layers: Sequence[dict[str, Any]], size: tuple[int, int], boxes: Sequence[Box], limit: float,
                 room: int) -> tuple[list[Box], list[dict[str, Any]]]:
    """The parts of the images that have at most `room` bytes, and the layers with these parts encoded."""
    width, height = size
    regions = [(0, 0, width, height)]
    while True:
        encoded = [_encode_layer(layer, regions, limit) for layer in layers]
        number = sum(len(part) for layer in encoded for part in layer.get('parts', ()))
        if number <= room:
            return regions, encoded
        if boxes and regions != list(boxes):
            regions = list(boxes)
            continue
        shrink = 0.95 * (max(room, 0) / number)**0.5
        crop_width, crop_height = (int(length * shrink) for length in regions[0][2:])
        if boxes or min(crop_width, crop_height) < min(MIN_CROP, width, height):
            raise UserError(f'a page with these images would have {(number + MAX_BYTES - room) / 1e6:.0f} MB, more '
                            f'than {MAX_BYTES / 1e6:.0f}; choose smaller boxes, or fewer images.')
        regions = [((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height)]


def _encode_layer(layer: dict[str, Any], regions: Sequence[Box], limit: float) -> dict[str, Any]:
    known: dict[str, Any] = {
        key: layer[key] for key in ('label', 'kind', 'network', 'of', 'truth') if key in layer}
    if 'of' in layer:
        return known
    pixels = layer['image'] if 'image' in layer else encode_error(layer['error'], limit)
    return {**known, 'parts': [encode_lossless(pixels[y:y + height, x:x + width]) for x, y, width, height in regions]}


def _describe_errors(images: Sequence[PageImage], limit: float) -> list[str]:
    owners = {one.label: one.owner for one in images if one.expected_error is not None}
    has_truth = any(one.truth is not None for one in images)
    texts = [describe_owners(owners)] if owners else []
    if owners or has_truth:
        texts.append('Errors are absolute, the mean of the channels, in 8-bit levels. All have one scale, from 0 to '
                     f'{limit:.6g}; larger ones have its last colour.')
    if owners:
        texts.append(f'The expected error is in steps of {limit / STEPS:.3g} levels.')
    if has_truth:
        texts.append('True errors are computed in this page from its images, which are lossless.')
    return [' '.join(texts)] if texts else []


def _build_scale(limit: float) -> str:
    ticks = ''.join(f'<span>{limit * part / 4:.3g}{" or more" if part == 4 else ""}</span>' for part in range(5))
    return ('<canvas id="colors" width="256" height="1" role="img" aria-label="Colours of errors, from 0 to '
            f'{limit:.6g} levels"></canvas><div>{ticks}</div>Absolute error (8-bit levels)')
