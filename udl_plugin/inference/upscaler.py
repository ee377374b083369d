"""Upscales images with a network, with the error that it expects: any bit depth, grey or colour, alpha, in tiles."""
from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Union

import cv2
import numpy as np
import torch
from basicsr.utils.color_util import rgb2ycbcr, ycbcr2rgb
from PIL import Image, ImageOps

from udl_plugin.archs.outputs import get_sr_image
from udl_plugin.archs.padding import get_required_multiple, pad_to_multiple
from udl_plugin.checkpoints.model_card import Scores
from udl_plugin.checkpoints.network_file import NetworkFile, find_error_loss, load_network_file
from udl_plugin.checkpoints.pretrained import find_pretrained, push_to_hub, save_pretrained
from udl_plugin.data.image_io import read_full_image
from udl_plugin.errors import UserError
from udl_plugin.inference.cost import memory_per_pixel
from udl_plugin.inference.tiles import MIN_TILE, find_overlap, get_receptive_radius, split_into_tiles
from udl_plugin.inference.visualize import describe_owner, expected_error_picture, swap_red_blue
from udl_plugin.metrics.uncertainty_metrics import ERROR_SCALES, expected_error
from udl_plugin.utils.memory import NotEnoughMemory, available_memory, explain_out_of_memory

AUTO_TILES = (1024, 512, 256, 128, MIN_TILE)  # tried where memory is short
ImageLike = Union[str, 'os.PathLike[str]', Image.Image, np.ndarray, torch.Tensor]
Progress = Callable[[Sequence[Any], int], Iterable[Any]]


def load(path: str | os.PathLike[str] = 'edsr_xs_x2', device: str | torch.device = 'auto', *,
         uncertainty: bool | None = None, uncertainty_loss: str | None = None, tile: int | None = None,
         self_ensemble: bool = False, param_key: str | None = None,
         network_g: dict[str, Any] | None = None) -> Upscaler:
    """Loads a network for upscaling, from a checkpoint of any step or a file that udl-convert wrote.

    >>> import udl_plugin
    >>> upscaler = udl_plugin.load('edsr_xs_x2', device='cpu')
    >>> upscaler
    Upscaler(EDSRVar x2, step 1, 121,758 parameters, device='cpu')
    >>> result = upscaler.upscale('photo.png')  # 20 x 12 pixels
    >>> result.image.shape, result.expected_error.shape
    ((24, 40, 3), (24, 40, 3))

    Args:
        path: `.pth`, `.pt`, `.safetensors`, or a folder of `save_pretrained`. Nothing in it is executed. Or the name of
            a network in the package, small and for first tries: `edsr_xs_x2`, `edsr_xs_x3` or `edsr_xs_x4`.
        device: Such as `cpu`, `cuda:1` or `mps`. `auto`: `cuda` if there is such a GPU, else `mps` on a Mac that has
            it, else `cpu`.
        uncertainty: Whether results have an expected error. None: if the file has a variance head. Without it, a
            step-2 file runs only one of its two networks.
        uncertainty_loss: Loss that the variance head was trained with: `ESU`, `EU` or `GaussianNLL`. None: what the
            file records; if it records none, `ESU`, with a line in `Upscaler.notes`.
        tile, self_ensemble: See `Upscaler`.
        param_key: Key of the weights in the file. None: `params_ema` if there, otherwise `params`.
        network_g: Config of the network, for files that do not record it.

    Raises:
        UserError: the file cannot be read, or an argument does not fit it.
    """
    device = find_device(device)
    file = load_network_file(path, param_key, network_g)
    uncertainty = file.stage != 'plain' if uncertainty is None else uncertainty
    try:
        return Upscaler(file, device, tile, self_ensemble, uncertainty, uncertainty_loss)
    except UserError as err:
        raise UserError(f"'{path}': {err}") from err


def from_pretrained(name: str | os.PathLike[str], device: str | torch.device = 'auto', *, revision: str | None = None,
                    uncertainty: bool | None = None, uncertainty_loss: str | None = None, tile: int | None = None,
                    self_ensemble: bool = False) -> Upscaler:
    """Loads a shared network: a folder of `Upscaler.save_pretrained`, or a model on the Hugging Face Hub.

    >>> upscaler = udl_plugin.from_pretrained('USER/NAME')  # doctest: +SKIP

    Only `model.safetensors` and `config.json` are downloaded and read; nothing in them is executed. A network of your
    own has to be registered first: import its module. Private models need `hf auth login`.

    Args:
        name: A folder, or `USER/NAME` on the Hub; a folder of that name has precedence.
        device, uncertainty, uncertainty_loss, tile, self_ensemble: See `load`.
        revision: Branch, tag or commit on the Hub. None: the newest.

    Raises:
        UserError: no such folder or model, no network, huggingface_hub or safetensors is not installed
            (`pip install 'udl_plugin[hub]'`), there is no `model.safetensors`; or see `load`.
    """
    return load(find_pretrained(name, revision), device, uncertainty=uncertainty, uncertainty_loss=uncertainty_loss,
                tile=tile, self_ensemble=self_ensemble)


def find_device(name: str | torch.device) -> torch.device:
    """Returns the device of that name, after a check that it can be used. `auto`: the GPU if there is one."""
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as err:
        raise UserError(f'device {name}: {str(err).splitlines()[0]}') from err


@dataclass(repr=False)
class UpscaleResult:
    """An upscaled image. Colours are RGB.

    Attributes:
        image: For a tensor, a float32 tensor in [0, 1], not rounded, with the rank and on the device of the input.
            Otherwise an array of the input's bit depth: `(H, W)`, `(H, W, 3)`, or with alpha `(H, W, 4)`.
        expected_error: Mean absolute error that the network expects at each value, in 8-bit levels, float32. One
            channel for each of the network's, RGB or luma, whatever the input has. For a tensor, a tensor
            `(C, H, W)` or `(1, C, H, W)`; otherwise an array `(H, W, C)`. None without uncertainty.
        log_var: The network's map that it comes from, float32 array `(C, H, W)`: log of the error's scale in 8-bit
            levels.
    """

    image: Any
    expected_error: Any = None
    log_var: np.ndarray | None = None

    def __repr__(self) -> str:
        error = self.expected_error
        mean = '' if error is None else f', expected_error: {_describe(error)}, mean {float(error.mean()):.3g}'
        return f'UpscaleResult(image: {_describe(self.image)}{mean})'


def _describe(values: Any) -> str:
    return f'{str(values.dtype).replace("torch.", "")} {tuple(values.shape)}'


class Upscaler:
    """Runs a network on images. `udl_plugin.load` builds one from a file.

    The expected error of a step-2 file is that of its frozen step-1 network: it describes the error of the image that
    step 1 gives.

    Args:
        file: From `load_network_file`.
        device: Where the network runs.
        tile: Largest side, in LR pixels, of what the network processes at once, to save memory. None: the full image,
            or tiles from the first image on for which memory is short, with a line in `notes`.
            Tiles overlap by the network's receptive radius, but by at most a quarter of `tile` on each side, in
            multiples of 16. With `overlap` of at least `receptive_radius`, the result is that of the full image, up to
            float32 rounding.
        self_ensemble: Average over eight flips and rotations: eight times the work for a little more PSNR.
        uncertainty: Also return the expected error; requires a file of step 1 or step 2.
        uncertainty_loss: See `load`.

    Attributes:
        network_g: Config of the network that runs.
        channels, scale: Of the network's images.
        notes: What a user should know, such as what was assumed about the file, or that tiles change the result;
            `upscale` adds one if it has to use tiles.
        overlap: Of tiles, on each side, in LR pixels; None without tiles.
        error_scale: Factor on the expected error, from `udl-upscale --calibrate`; otherwise 1.
        receptive_radius: Of the network, in LR pixels. A class declares its own as the attribute `receptive_radius`,
            an integer or a function of the options; None if unknown.

    Raises:
        UserError: `tile` is too small, an unknown loss, or uncertainty from a file without a variance head.
    """

    def __init__(self, file: NetworkFile, device: str | torch.device = 'cpu', tile: int | None = None,
                 self_ensemble: bool = False, uncertainty: bool = False, uncertainty_loss: str | None = None):
        if tile is not None and tile < MIN_TILE:
            raise UserError(f'tile {tile} is too small; use {MIN_TILE} or more.')
        if uncertainty and file.stage == 'plain':
            raise UserError('it holds a plain network, without a variance head, and cannot give uncertainty. Use the '
                            'checkpoint of step 1 or step 2.')
        base = file.base()
        self.network_g = (file if uncertainty else base).network_g
        self.net = (file if uncertainty else base).build().to(device)
        self.device, self.self_ensemble, self.uncertainty = torch.device(device), self_ensemble, uncertainty
        self.architecture, self.stage, self.notes = file.architecture, file.stage, list(file.notes)
        self.uncertainty_loss = self._find_loss(uncertainty_loss, file.uncertainty_loss) if uncertainty else None
        self._known_loss = (uncertainty_loss or file.uncertainty_loss) if uncertainty else None  # without an assumption
        is_other = uncertainty_loss not in (None, file.uncertainty_loss)  # than the one that was calibrated
        self.error_scale = 1.0 if is_other else file.error_scale
        self.channels, self.scale = file.channels_and_scale
        self.multiple = get_required_multiple(base.network_g)
        self.receptive_radius = get_receptive_radius(base.network_g)
        self.tile: int | None = None
        self.overlap: int | None = None
        if tile is not None:
            self._set_tile(tile)
        self._chooses_tile, self._first_notes = tile is None, list(self.notes)

    def _find_loss(self, given: str | None, recorded: str | None) -> str:
        if given is not None and given not in ERROR_SCALES:
            raise UserError(f"uncertainty_loss: '{given}' is not one of {', '.join(ERROR_SCALES)}.")
        if given is not None:
            return given
        loss, note = find_error_loss(recorded)
        if note:
            self.notes.append(f'{note} --uncertainty-loss (in Python uncertainty_loss) names another.')
        return loss

    def _set_tile(self, tile: int, note: str = '') -> None:
        self.tile = tile
        self.overlap, seams = find_overlap(tile, self.receptive_radius)
        if note or seams:
            self.notes.append(f'{note} {seams}'.strip())

    def __repr__(self) -> str:
        number = sum(value.numel() for value in self.net.state_dict().values())
        return (f"Upscaler({self.architecture} x{self.scale}, {self.stage}, {number:,} parameters, "
                f"device='{self.device}')")

    def upscale(self, image: ImageLike, progress: Progress | None = None) -> UpscaleResult:
        """Upscales an image.

        Args:
            image: One of

                - the path of an image file of 8 or 16 bits, turned as its EXIF data says;
                - a PIL image, likewise;
                - an array, uint8 or uint16, `(H, W)`, `(H, W, 3)` RGB, or with alpha `(H, W, 4)`;
                - a float tensor in [0, 1], `(C, H, W)` or `(1, C, H, W)`, C of 3 (RGB) or 1.

                A network of one channel is given the luma; colours are then upscaled bicubically, as alpha always is.
            progress: Called as `progress(tiles, number)`; what it returns is iterated over instead: a progress bar.

        Raises:
            UserError: the image cannot be read, or is of another type or shape; or memory does not suffice.
        """
        if isinstance(image, torch.Tensor):
            return self._upscale_tensor(image, progress)
        if isinstance(image, (str, os.PathLike)):
            rgb = swap_red_blue(read_full_image(image))
        elif isinstance(image, (np.ndarray, Image.Image)):
            rgb = image if isinstance(image, np.ndarray) else _from_pil(image)
        else:
            raise UserError(f'expected a path, a PIL image, an array or a tensor, not {type(image).__name__}.')
        if rgb.dtype not in (np.uint8, np.uint16) or rgb.shape[2:] not in ((), (3,), (4,)) or rgb.size == 0:
            raise UserError(f'expected an image of 8 or 16 bits, grey or colour, not {rgb.dtype} {rgb.shape}.')
        levels = np.iinfo(rgb.dtype).max
        sr, log_var = self._upscale_unit(rgb.astype(np.float32) / levels, progress)
        result = UpscaleResult((sr * levels).round().astype(rgb.dtype, order='C'))
        if log_var is not None:
            result.log_var = log_var
            result.expected_error = np.ascontiguousarray(np.moveaxis(self._expected_error(log_var), 0, 2))
        return result

    def draw_expected_error(self, result: UpscaleResult, limits: Sequence[float] | None = None,
                            colormap: str = 'inferno') -> np.ndarray:
        """Draws the expected error of a result with its colour bar, as `udl-upscale --uncertainty` does.

        Args:
            result: With a `log_var`.
            limits, colormap: See `expected_error_picture` in udl_plugin/inference/visualize.py.

        Returns:
            uint8 `(max(H, 240), W + bar, 3)`, RGB.

        Raises:
            UserError: a result without uncertainty.
            ValueError: wrong limits or an unknown colour map.
        """
        if result.log_var is None:
            raise UserError('the result has no expected error; load the checkpoint of step 1 or 2, with uncertainty.')
        return swap_red_blue(expected_error_picture(result.log_var, limits=limits, colormap=colormap, **self.map_unit))

    @property
    def map_unit(self) -> dict[str, Any]:
        """What turns a map into an expected error, and whose it is: `loss`, `error_scale` and `owner`."""
        return {'loss': self.uncertainty_loss or 'ESU', 'error_scale': self.error_scale,
                'owner': describe_owner(self.stage, self.error_scale)}

    def save_pretrained(self, folder: str | os.PathLike[str], *, yml: str | os.PathLike[str] | None = None,
                        scores: Scores | None = None, license: str | None = None, force: bool = False) -> None:
        """Writes the network to a folder that `udl_plugin.from_pretrained` reads, with config and model card.

        >>> udl_plugin.load('net_g_latest.pth').save_pretrained('edsr_x2', license='apache-2.0')  # doctest: +SKIP

        Args:
            folder: New, or empty; with `force` also one that this method wrote, which is replaced.
            yml: The option file that trained the network, included as it is, with the paths in it.
            scores: For the model card: `{'Set5': {'PSNR': 37.9, 'SSIM': 0.96}}`, or the `scores.csv` of udl-compare.
            license: For the model card: an identifier such as `apache-2.0`.

        Raises:
            UserError: the folder exists or holds other files, safetensors is not installed, `yml` or `scores` cannot be
                read, or `yml` contradicts the network.
        """
        save_pretrained(self._as_file(), folder, yml=yml, scores=scores, license=license, force=force)

    def push_to_hub(self, repo_id: str, *, yml: str | os.PathLike[str] | None = None, scores: Scores | None = None,
                    license: str | None = None, private: bool | None = None,
                    commit_message: str | None = None) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face Hub. Returns the address of the commit.

        Args:
            repo_id: `USER/NAME`; made if it does not exist.
            yml, scores, license: See `save_pretrained`.
            private: Whether a new repository is private. None: the user's default.
            commit_message: None: `Upload NAME with udl_plugin`.

        Raises:
            UserError: see `save_pretrained`; huggingface_hub is not installed, the Hub cannot be reached, or it refuses
                the upload: `hf auth login` logs in.
        """
        return push_to_hub(self._as_file(), repo_id, yml=yml, scores=scores, license=license, private=private,
                           commit_message=commit_message)

    def _as_file(self) -> NetworkFile:
        state_dict = {name: value.cpu() for name, value in self.net.state_dict().items()}
        return NetworkFile(state_dict, self.network_g, uncertainty_loss=self._known_loss,
                           error_scale=self.error_scale)

    def _upscale_tensor(self, image: torch.Tensor, progress: Progress | None) -> UpscaleResult:
        planes = image[0] if image.ndim == 4 and len(image) == 1 else image
        if not image.is_floating_point() or planes.ndim != 3 or len(planes) not in (1, 3) or planes.numel() == 0:
            raise UserError('expected a float tensor (C, H, W) or (1, C, H, W) of 1 or 3 channels, not '
                            f'{image.dtype} {tuple(image.shape)}.')
        unit = np.moveaxis(planes.detach().cpu().float().numpy(), 0, 2)
        if not (unit.min() >= 0 and unit.max() <= 1):
            raise UserError(f'expected a tensor in [0, 1], not in [{unit.min():.4g}, {unit.max():.4g}].')
        sr, log_var = self._upscale_unit(unit, progress)

        def to_tensor(array: np.ndarray) -> torch.Tensor:
            tensor = torch.from_numpy(np.ascontiguousarray(array)).to(image.device)
            return tensor[None] if image.ndim == 4 else tensor

        result = UpscaleResult(to_tensor(np.moveaxis(sr, 2, 0)))
        if log_var is not None:
            result.log_var, result.expected_error = log_var, to_tensor(self._expected_error(log_var))
        return result

    def _expected_error(self, log_var: np.ndarray) -> np.ndarray:
        with np.errstate(over='ignore'):  # an untrained map may go beyond float32
            return expected_error(log_var, self.uncertainty_loss or 'ESU', self.error_scale).astype(np.float32)

    def _upscale_unit(self, unit: np.ndarray, progress: Progress | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Upscales a float32 image in [0, 1]; returns the like, and the map.

        Args:
            unit: Grey `(H, W)` or `(H, W, 1)`, RGB `(H, W, 3)`, or with alpha `(H, W, 4)`.
            progress: As in `upscale`.
        """
        planes = np.atleast_3d(unit)
        rgb, alpha = np.broadcast_to(planes[:, :, :3], (*planes.shape[:2], 3)), planes[:, :, 3:]
        if self.channels == 1:
            ycbcr = rgb2ycbcr(rgb)
            luma, log_var = self._run_network(ycbcr[:, :, :1], progress)
            sr = ycbcr2rgb(np.concatenate((luma, _bicubic(ycbcr[:, :, 1:], self.scale)), axis=2))
        else:
            sr, log_var = self._run_network(rgb, progress)
        if planes.shape[2] != 3 and (rgb == rgb[:, :, :1]).all():  # grey stays grey
            sr = np.repeat(sr.mean(axis=2, keepdims=True), min(planes.shape[2], 3), axis=2)
        if alpha.size:
            sr = np.dstack((sr, _bicubic(alpha, self.scale)))
        if not np.isfinite(sr).all():
            raise UserError('the network gives values that are not finite.')
        return sr.reshape(*sr.shape[:2], *unit.shape[2:]).clip(0, 1), log_var

    def _run_network(self, image: np.ndarray, progress: Progress | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Turns `(H, W, C)` in [0, 1], RGB or luma, into the SR image `(H, W, C)` and the map `(C, H, W)`."""
        lq = np.moveaxis(image, 2, 0)
        if self._chooses_tile and self.device.type == 'cpu' and max(lq.shape[1:]) > MIN_TILE:  # it may be killed
            self._check_memory(*lq.shape[1:])
        while True:
            try:
                return self._run_tiles(lq, progress)
            except NotEnoughMemory:
                smaller = [tile for tile in AUTO_TILES if tile < min(self.tile or math.inf, max(lq.shape[1:]))]
                if not (self._chooses_tile and smaller):
                    raise
            self._choose_tile(smaller[0])

    def _check_memory(self, height: int, width: int) -> None:
        """Chooses the largest tile for which memory suffices, by an estimate, if it does not for the full image."""
        free, tile = available_memory(), self.tile or max(height, width)
        if free is None or self._memory_per_pixel * min(height, tile) * min(width, tile) <= free:
            return
        smaller = [size for size in AUTO_TILES if size < tile]
        fitting = [size for size in smaller if self._memory_per_pixel * size ** 2 <= free]
        if smaller:
            self._choose_tile((fitting or smaller[-1:])[0])

    @functools.cached_property
    def _memory_per_pixel(self) -> float:
        return memory_per_pixel(self.net)

    def _choose_tile(self, tile: int) -> None:
        self.notes[:] = self._first_notes  # without that of a larger tile
        self._set_tile(tile, f'memory is short; using tiles of {tile} x {tile} pixels, as --tile {tile} does.')
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()
        elif self.device.type == 'mps':
            torch.mps.empty_cache()

    def _run_tiles(self, lq: np.ndarray, progress: Progress | None) -> tuple[np.ndarray, np.ndarray | None]:
        channels, height, width = lq.shape
        total = np.zeros((2 * channels if self.uncertainty else channels, self.scale * height, self.scale * width),
                         np.float32)
        views = [(turns, flip) for turns in range(4) for flip in (False, True)] if self.self_ensemble else [(0, False)]
        tiles = []
        for view in views:
            height, width = _view(lq, *view).shape[1:]
            parts = split_into_tiles(height, width, self.scale, self.tile, self.overlap or 0)
            tiles += [(view, tile) for tile in parts]
        message = 'memory does not suffice for an image of this size; use tiles: --tile 256, or tile=256 in Python.'
        if self.tile is not None:
            message = f'memory does not suffice for tiles of {self.tile} pixels; use smaller ones (down to {MIN_TILE}).'
        for view, tile in progress(tiles, len(tiles)) if progress else tiles:
            out = explain_out_of_memory(message, self._forward, _view(lq, *view)[tile.source])
            _view(total, *view)[tile.target] += out[tile.inside] / len(views)
        return np.moveaxis(total[:channels], 0, 2), total[channels:] if self.uncertainty else None

    @torch.no_grad()
    def _forward(self, lq: np.ndarray) -> np.ndarray:
        """Turns `(C, h, w)` into `(C, scale * h, scale * w)`, followed by the map with `uncertainty`: `(2 C, ...)`."""
        height, width = lq.shape[1:]
        padded = pad_to_multiple(torch.from_numpy(lq.copy())[None].to(self.device), self.multiple)
        out = torch.cat(self.net(padded, return_log_var=True), 1) if self.uncertainty else \
            get_sr_image(self.net(padded))
        return out[0, :, :height * self.scale, :width * self.scale].float().cpu().numpy()


def _from_pil(image: Image.Image) -> np.ndarray:
    """RGB array `(H, W)`, `(H, W, 3)` or `(H, W, 4)`; grey with alpha becomes RGBA, as `read_full_image` returns it."""
    image = ImageOps.exif_transpose(image)
    has_alpha = image.mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La') or 'transparency' in image.info
    if image.mode.startswith('I;16'):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ('I', 'F', 'LAB'):
        raise UserError(f'expected a PIL image of 8 or 16 bits, grey or colour, not of mode {image.mode}.')
    return np.asarray(image.convert('RGBA' if has_alpha else 'L' if image.mode in ('1', 'L') else 'RGB'))


def _view(planes: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    """A view of `(C, H, W)`, rotated by `turns` quarters, then flipped."""
    planes = np.rot90(planes, turns, (1, 2))
    return planes[:, :, ::-1] if flip else planes


def _bicubic(img: np.ndarray, scale: int) -> np.ndarray:
    return cv2.resize(img, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC).clip(0, 1)
