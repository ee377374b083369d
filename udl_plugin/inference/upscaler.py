"""Upscales images with a network: any depth and kind of image, whole or in tiles, with the map of its uncertainty."""
import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from basicsr.utils.color_util import bgr2ycbcr, ycbcr2bgr

from udl_plugin.archs.dpdnn_arch import dpdnn_receptive_radius
from udl_plugin.archs.edsr_arch import edsr_receptive_radius
from udl_plugin.archs.padding import get_required_multiple, pad_to_multiple
from udl_plugin.errors import UserError

ALIGN = 16  # tiles begin at multiples of it: DPDNN halves four times, SwinIR's windows are 8 pixels
LEAST_TILE = 64
REACHES = {'EDSR': edsr_receptive_radius, 'DPDNN': dpdnn_receptive_radius}  # how far a network sees, in LR pixels


@dataclass
class UpscaleResult:
    """
    Attributes:
        image (ndarray): As the image that went in, `upscale` times the size: its depth, grey or colour, alpha.
        log_var (ndarray | None): float32 `(C, H, W)`: log of the error's scale in 8-bit levels.
    """

    image: np.ndarray
    log_var: np.ndarray = None


class Upscaler:
    """Runs a network on images.

    Args:
        model (Model): From `load_network_file`; with a map asked for, one of step 1 or 2.
        device (str | torch.device): Where it runs.
        tile (int): The side, in LR pixels, of what the network sees at once, which bounds the memory; None: all.
            Neighbours overlap by as much as the network sees beyond what it writes, but by no more than a quarter of
            `tile` on each side, in multiples of 16; `margin` and `reach` tell. With `margin` at `reach` the result is
            that of the whole image, up to float32 rounding.
        self_ensemble (bool): Mean over the eight flips and rotations: eight times the work for a little more PSNR.
        uncertainty (bool): Also give maps.

    Raises:
        UserError: `tile` too small, or a map asked for from a plain network.
    """

    def __init__(self, model, device='cpu', tile=None, self_ensemble=False, uncertainty=False):
        if tile is not None and tile < LEAST_TILE:
            raise UserError(f'--tile {tile} is too small; take {LEAST_TILE} or more.')
        if uncertainty and model.stage == 'plain':
            raise UserError('it holds a plain network, without a variance head: there is no map to be had. Take the '
                             'checkpoint of step 1 or step 2 itself.')
        section = model.plain().network_g
        self.net = (model if uncertainty else model.plain()).build().to(device)
        self.device, self.self_ensemble, self.uncertainty = torch.device(device), self_ensemble, uncertainty
        self.channels, self.upscale = model.channels_and_scale
        self.multiple = get_required_multiple(section)
        self.reach = REACHES[section['type']](section) if section['type'] in REACHES else None
        self.tile = tile
        self.margin = None
        if tile is not None:
            self.margin = min(_up_to(ALIGN, self.reach or math.inf), tile // 4 // ALIGN * ALIGN)

    def __call__(self, img, track=None):
        """
        Args:
            img (ndarray): uint8 or uint16, `(H, W)`, or `(H, W, 3)` BGR, or with alpha `(H, W, 4)`.
            track (Callable): Called as `track(pieces, number)`, to be iterated over in its place: a progress bar.

        Returns:
            Upscaled: For a network of one channel, colours are upscaled bicubically beside its luma.

        Raises:
            UserError: another type or shape of image, or not enough memory.
        """
        if img.dtype not in (np.uint8, np.uint16) or img.shape[2:] not in ((), (3,), (4,)):
            raise UserError(f'8 or 16 bit, grey or colour, is needed, not {img.dtype} {img.shape}.')
        levels = np.iinfo(img.dtype).max
        unit = img.astype(np.float32) / levels
        alpha = unit[:, :, 3] if img.shape[2:] == (4,) else None
        grey = img.ndim == 2 or (alpha is not None and (img[:, :, :1] == img[:, :, 1:3]).all())
        bgr = np.repeat(unit[:, :, None], 3, axis=2) if img.ndim == 2 else unit[:, :, :3]
        if self.channels == 1:
            ycbcr = bgr2ycbcr(bgr)
            luma, log_var = self._run(ycbcr[:, :, :1], track)
            colours = _bicubic(ycbcr[:, :, 1:], self.upscale)
            sr = ycbcr2bgr(np.concatenate((luma, colours), axis=2))
        else:
            sr, log_var = self._run(bgr[:, :, ::-1], track)
            sr = sr[:, :, ::-1]
        if grey:
            sr = sr.mean(axis=2) if alpha is None else sr.mean(axis=2, keepdims=True).repeat(3, axis=2)
        if alpha is not None:
            sr = np.concatenate((sr, _bicubic(alpha, self.upscale)[:, :, None]), axis=2)
        if not np.isfinite(sr).all():
            raise UserError('the network makes values of it that are no finite numbers.')
        return UpscaleResult((sr.clip(0, 1) * levels).round().astype(img.dtype), log_var)

    def _run(self, image, track):
        """`(H, W, C)` in [0, 1], RGB or luma, to the SR image of that kind, and the map or None."""
        lq = np.moveaxis(image, 2, 0)
        number, height, width = lq.shape
        total = np.zeros((2 * number if self.uncertainty else number, self.upscale * height, self.upscale * width),
                         np.float32)
        ways = [(turns, flip) for turns in range(4) for flip in (False, True)] if self.self_ensemble else [(0, False)]
        jobs = [(way, piece) for way in ways for piece in _pieces(*_turned(lq, *way).shape[1:], self.tile, self.margin)]
        for way, piece in track(jobs, len(jobs)) if track else jobs:
            out = self._forward(_turned(lq, *way)[:, piece.rows, piece.columns])
            _turned(total, *way)[:, piece.written(0, self.upscale), piece.written(1, self.upscale)] += \
                out[:, piece.kept(0, self.upscale), piece.kept(1, self.upscale)] / len(ways)
        return np.moveaxis(total[:number], 0, 2), total[number:] if self.uncertainty else None

    @torch.no_grad()
    def _forward(self, lq):
        """`(C, h, w)` to `(C, upscale * h, upscale * w)`; behind it the map where one is wanted, `(2 C, ...)`."""
        height, width = lq.shape[1:]
        try:
            lq = pad_to_multiple(torch.from_numpy(np.ascontiguousarray(lq))[None].to(self.device), self.multiple)
            out = torch.cat(self.net(lq, return_log_var=True), 1) if self.uncertainty else self.net(lq)
        except RuntimeError as err:
            if isinstance(err, torch.cuda.OutOfMemoryError) or 'alloc' in str(err):
                raise UserError('there is not enough memory to upscale it at once; give --tile 256, or less.') from err
            raise UserError(f'the network cannot run on it ({" ".join(str(err).split())}).') from err
        return out[0, :, :height * self.upscale, :width * self.upscale].float().cpu().numpy()


def _up_to(step, length):
    return length if math.isinf(length) else -(-length // step) * step


def _turned(x, turns, flip):
    """A view of an array `(C, H, W)`, turned by so many quarters, then flipped."""
    x = np.rot90(x, turns, (1, 2))
    return x[:, :, ::-1] if flip else x


def _bicubic(img, scale):
    return cv2.resize(img, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC).clip(0, 1)


@dataclass
class _Tile:
    """A part of the image. For each direction: where reading begins and ends, where writing does; in LR pixels."""

    read: tuple
    write: tuple

    @property
    def rows(self):
        return slice(*self.read[0])

    @property
    def columns(self):
        return slice(*self.read[1])

    def written(self, direction, scale):
        """In the SR image."""
        return slice(*(scale * edge for edge in self.write[direction]))

    def kept(self, direction, scale):
        """In the SR image of the part."""
        return slice(*(scale * (edge - self.read[direction][0]) for edge in self.write[direction]))


def _pieces(height, width, tile, margin):
    for rows in _spans(height, tile, margin):
        for columns in _spans(width, tile, margin):
            yield _Tile(*zip(rows, columns))


def _spans(length, tile, margin):
    """Pairs of what to read and what to write, each from and to."""
    if tile is None or length <= tile:
        return [((0, length), (0, length))]
    step = (tile - 2 * margin) // ALIGN * ALIGN
    return [((max(start - margin, 0), min(start + step + margin, length)), (start, min(start + step, length)))
            for start in range(0, length, step)]
