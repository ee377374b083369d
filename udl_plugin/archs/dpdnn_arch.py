"""DPDNN for super-resolution, with a variance head (step 1) and its step-2 network.

'Denoising Prior Driven Deep Neural Network for Image Restoration', Dong et al., TPAMI 2019.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from udl_plugin.archs.two_step import TwoStep
from udl_plugin.archs.with_variance import WithVariance, takes_options_of
from udl_plugin.archs.wrapping import sub_state_dict
from udl_plugin.errors import UserError, reject_unknown_kwargs
from udl_plugin.utils.imresize import cubic

STAGES = 4  # of the U-Net
UNET_RECEPTIVE_RADIUS = 152  # pixels that it sees from a pixel, at the worst position among 16; a test measures it


@reject_unknown_kwargs
class DPDNN(nn.Module):
    """Unrolled optimisation: bicubic upsampling, then steps that share one denoiser and keep the image close to the LR.

    A step replaces the image `x` by `x - delta * (up(down(x) - y) + eta * (x - v))`, where `y` is the LR image, `v =
    x + net(x)` the denoised image, and `delta`, `eta` are learned for each step. `up` and `down` are bicubic as in
    MATLAB. The U-Net is the paper's: each decoder stage takes the features of the encoder stage of its size.

    Args:
        num_in_ch, num_out_ch: 3 for RGB, 1 for grey; the same number.
        num_feat: Channels of the features.
        num_step: Unrolled steps.
        upscale: 2, 3, 4, or any larger integer.
        img_range: The input is multiplied by it, the output divided.
        checkpointing: In training, keep only the image of each step and recompute the rest in the backward pass: a
            fraction of the memory for a third more time. The results are the same.

    Raises:
        UserError: an unknown option, one that is not an integer or too small, or `num_in_ch` is not `num_out_ch`.
    """

    def __init__(self, num_in_ch: int, num_out_ch: int, num_feat: int = 64, num_step: int = 6, upscale: int = 4,
                 img_range: float = 255., checkpointing: bool = False):
        super().__init__()
        least = {'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 1, 'num_step': 1, 'upscale': 2}
        for name, value in zip(least, (num_in_ch, num_out_ch, num_feat, num_step, upscale)):
            if not isinstance(value, int) or value < least[name]:
                raise UserError(f'type: DPDNN: {name}: expected an integer of at least {least[name]}, '
                                f'got {value!r}.')
        if num_in_ch != num_out_ch:
            raise UserError(f'type: DPDNN: num_in_ch: {num_in_ch} and num_out_ch: {num_out_ch} must be equal: '
                            'DPDNN refines its input image.')
        self.img_range = img_range
        self.checkpointing = checkpointing
        self.up = BicubicUp(upscale)
        self.down = BicubicDown(upscale)
        self.denoiser = UNet(num_in_ch, num_feat)
        self.delta = nn.Parameter(torch.full((num_step,), 0.1))
        self.eta = nn.Parameter(torch.full((num_step,), 0.9))

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges an LR image `(N, C, H, W)` in [0, 1], of any size, to `(N, C, upscale * H, upscale * W)`."""
        lq = x * self.img_range
        x = self.up(lq)
        for delta, eta in zip(self.delta.unbind(), self.eta.unbind()):
            if self.checkpointing and torch.is_grad_enabled():
                residual = checkpoint(self.denoiser, x, use_reentrant=False, preserve_rng_state=False)
            else:
                residual = self.denoiser(x)
            x = x - delta * (self.up(self.down(x) - lq) - eta * residual)
        return x / self.img_range


def infer_dpdnn_config(state_dict: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Infers the options of the DPDNN in a state dict of any stage from the shapes of its weights.

    Returns:
        The options that the shapes determine; None if it is not a DPDNN.
    """
    weights = sub_state_dict(state_dict, 'var_net') or state_dict
    dimensions = {'delta': 1, 'eta': 1, 'up.kernel': 4, 'down.kernel': 4, 'denoiser.conv_last.weight': 4}
    if any(name not in weights or weights[name].ndim != number for name, number in dimensions.items()):
        return None
    num_ch, num_feat = weights['denoiser.conv_last.weight'].shape[:2]
    return {'num_in_ch': num_ch, 'num_out_ch': num_ch, 'num_feat': num_feat, 'num_step': len(weights['delta']),
            'upscale': round(len(weights['up.kernel'])**0.5)}


def dpdnn_receptive_radius(options: Mapping[str, Any]) -> int:
    """How many LR pixels away a DPDNN and its variance head see.

    Args:
        options: Config of the base network.
    """
    return math.ceil((options.get('num_step', 6) * UNET_RECEPTIVE_RADIUS + 3) / options.get('upscale', 4)) + 3


@takes_options_of(DPDNN)
class DPDNNVar(WithVariance):
    """`DPDNN` plus a variance head, `var_conv`, on the last features of the last step's decoder.

    Options: those of `DPDNN`, and `features` of `WithVariance`.
    """

    options_from_weights = staticmethod(infer_dpdnn_config)


@takes_options_of(DPDNN)
class DPDNNTwo(TwoStep):
    """Step 2: `sr_net`, a `DPDNN`, and `var_net`, the frozen `DPDNNVar` of step 1. Options as in `DPDNNVar`."""

    options_from_weights = staticmethod(infer_dpdnn_config)


class UNet(nn.Module):
    """The denoiser without its skip from input to output: `(N, num_ch, H, W)` of any size to the same shape.

    Args:
        num_ch: Channels of the image.
        num_feat: Channels of the features.
    """

    def __init__(self, num_ch: int, num_feat: int):
        super().__init__()
        self.encoder = nn.ModuleList([_convs(num_feat, 3, num_ch if stage == 0 else num_feat)
                                      for stage in range(STAGES)])
        self.shrink = nn.ModuleList([nn.Conv2d(num_feat, num_feat, 3, 2, 1) for _ in range(STAGES)])
        self.bottleneck = _convs(num_feat, 1)
        self.enlarge = nn.ModuleList([nn.ConvTranspose2d(num_feat, num_feat, 3, 2, 1, 1) for _ in range(STAGES)])
        self.join = nn.ModuleList([nn.Conv2d(2 * num_feat, num_feat, 1) for _ in range(STAGES)])
        self.decoder = nn.ModuleList([_convs(num_feat, 4) for _ in range(STAGES)])
        self.conv_last = nn.Conv2d(num_feat, num_ch, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for encoder, shrink in zip(self.encoder, self.shrink):
            skips.append(encoder(x))
            x = F.relu(shrink(skips[-1]))
        x = self.bottleneck(x)
        for enlarge, join, decoder in zip(self.enlarge, self.join, self.decoder):
            skip = skips.pop()
            x = F.relu(enlarge(x))[..., :skip.shape[-2], :skip.shape[-1]]  # crop what an odd size was rounded up to
            x = decoder(F.relu(join(torch.cat((x, skip), 1))))
        return self.conv_last(x)


def _convs(num_feat: int, number: int, num_in_ch: int | None = None) -> nn.Sequential:
    """3x3 convolutions, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for layer in range(number):
        layers += [nn.Conv2d(num_in_ch or num_feat if layer == 0 else num_feat, num_feat, 3, 1, 1), nn.ReLU(True)]
    return nn.Sequential(*layers)


class _Bicubic(nn.Module):
    """Resizing by an integer factor as a convolution with clamped border: MATLAB's imresize without its rounding.

    `kernel` is saved with the weights; `infer_dpdnn_config` reads the scale from it.
    """

    kernel: Tensor

    def __init__(self, kernels: np.ndarray):
        super().__init__()
        self.register_buffer('kernel', torch.tensor(kernels, dtype=torch.float32).unsqueeze(1))

    def convolve(self, x: Tensor, padding: int, stride: int) -> Tensor:
        n, c, h, w = x.shape
        x = F.pad(x.reshape(n * c, 1, h, w), (padding,) * 4, mode='replicate')
        with torch.autocast(x.device.type, enabled=False):  # on an image: see mixed_precision.py
            return F.conv2d(x, self.kernel, stride=stride)


class BicubicUp(_Bicubic):
    """`(N, C, H, W)` to `(N, C, scale * H, scale * W)`. One kernel for each position within an LR pixel."""

    def __init__(self, scale: int):
        offsets = (np.arange(scale) + 0.5) / scale - 0.5
        rows = cubic(offsets[:, None] - np.arange(-2, 3))
        super().__init__(np.einsum('iy,jx->ijyx', rows, rows).reshape(scale**2, 5, 5))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = F.pixel_shuffle(self.convolve(x, 2, 1), self.scale)
        return x.reshape(n, c, self.scale * h, self.scale * w)


class BicubicDown(_Bicubic):
    """`(N, C, scale * H, scale * W)` to `(N, C, H, W)`, with a kernel widened by `scale` against aliasing."""

    def __init__(self, scale: int):
        distances = np.arange(-2 * scale, 3 * scale) - (scale - 1) / 2
        row = cubic(distances / scale)
        row /= row.sum()
        super().__init__(np.outer(row, row)[None])
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return self.convolve(x, 2 * self.scale, self.scale).reshape(n, c, h // self.scale, w // self.scale)
