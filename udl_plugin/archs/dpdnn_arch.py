"""DPDNN, 'Denoising Prior Driven Deep Neural Network for Image Restoration' (Dong et al., TPAMI 2019), for
super-resolution, with a variance head (step 1), and the pair of step 2."""
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from udl_plugin.archs.two_step import TwoStep
from udl_plugin.archs.with_variance import WithVariance, takes_options_of
from udl_plugin.archs.wrapping import sub_state_dict
from udl_plugin.errors import UserError, reject_unknown_kwargs
from udl_plugin.utils.imresize import cubic

STAGES = 4  # of the U-Net
UNET_RECEPTIVE_RADIUS = 152  # how far it sees from a pixel, at the worst place among 16; a test looks


@reject_unknown_kwargs
class DPDNN(nn.Module):
    """Unrolled optimisation: bicubic upsampling, then steps that share one denoiser and pull the image back to the LR.

    A step takes the image `x` to `x - delta * (up(down(x) - y) + eta * (x - v))`, where `y` is the LR image, `v =
    x + net(x)` the denoised image, and `delta`, `eta` are learned for each step. `up` and `down` are bicubic as in
    MATLAB. The paper's U-Net: each stage of the decoder sees the features of the encoder's stage of its size.

    Args:
        num_in_ch, num_out_ch (int): 3 for RGB, 1 for grey; the same number.
        num_feat (int): Channels of the features.
        num_step (int): Unrolled steps.
        upscale (int): 2, 3, 4, or any other whole number above 1.
        img_range (float): The input is multiplied by it, the output divided.
        checkpointing (bool): In training, keep the image of each step only and compute the rest again in the backward
            pass: a fraction of the memory for a third more time. The results are the same.

    Raises:
        UserError: an unknown option, one that is no whole number or too small, or different `num_in_ch`, `num_out_ch`.
    """

    def __init__(self, num_in_ch, num_out_ch, num_feat=64, num_step=6, upscale=4, img_range=255., checkpointing=False):
        super().__init__()
        least = {'num_in_ch': 1, 'num_out_ch': 1, 'num_feat': 1, 'num_step': 1, 'upscale': 2}
        for name, value in zip(least, (num_in_ch, num_out_ch, num_feat, num_step, upscale)):
            if not isinstance(value, int) or value < least[name]:
                raise UserError(f'type: DPDNN: {name}: {value!r} is not a whole number from {least[name]} on.')
        if num_in_ch != num_out_ch:
            raise UserError(f'type: DPDNN: num_in_ch: {num_in_ch} and num_out_ch: {num_out_ch} must be the same: '
                             'the image that comes in is refined.')
        self.img_range = img_range
        self.checkpointing = checkpointing
        self.up = BicubicUp(upscale)
        self.down = BicubicDown(upscale)
        self.denoiser = UNet(num_in_ch, num_feat)
        self.delta = nn.Parameter(torch.full((num_step,), 0.1))
        self.eta = nn.Parameter(torch.full((num_step,), 0.9))

    def forward(self, x):
        """`(N, C, H, W)` in [0, 1], of any size, to the SR image `(N, C, upscale * H, upscale * W)`."""
        lq = x * self.img_range
        x = self.up(lq)
        for delta, eta in zip(self.delta.unbind(), self.eta.unbind()):
            if self.checkpointing and torch.is_grad_enabled():
                residual = checkpoint(self.denoiser, x, use_reentrant=False, preserve_rng_state=False)
            else:
                residual = self.denoiser(x)
            x = x - delta * (self.up(self.down(x) - lq) - eta * residual)
        return x / self.img_range


def infer_dpdnn_config(state_dict):
    """Options of the DPDNN in a state dict of either step, as far as weights tell; None where there is none."""
    weights = sub_state_dict(state_dict, 'var_net') or state_dict
    dimensions = {'delta': 1, 'eta': 1, 'up.kernel': 4, 'down.kernel': 4, 'denoiser.conv_last.weight': 4}
    if any(name not in weights or weights[name].ndim != number for name, number in dimensions.items()):
        return None
    num_ch, num_feat = weights['denoiser.conv_last.weight'].shape[:2]
    return {'num_in_ch': num_ch, 'num_out_ch': num_ch, 'num_feat': num_feat, 'num_step': len(weights['delta']),
            'upscale': round(len(weights['up.kernel'])**0.5)}


def dpdnn_receptive_radius(options):
    """How far a DPDNN and its variance head see from a pixel, in LR pixels; `options` as `dpdnn_options` gives them."""
    return math.ceil((options.get('num_step', 6) * UNET_RECEPTIVE_RADIUS + 3) / options.get('upscale', 4)) + 3


@takes_options_of(DPDNN)
class DPDNNVar(WithVariance):
    """`DPDNN` plus a variance head, `var_conv`, on the last features of the last step's decoder. Options as there."""

    options_from_weights = staticmethod(infer_dpdnn_config)


@takes_options_of(DPDNN)
class DPDNNTwo(TwoStep):
    """Step 2: `sr_net`, a `DPDNN` that is trained, and `var_net`, the frozen `DPDNNVar` of step 1. Options as there."""

    options_from_weights = staticmethod(infer_dpdnn_config)


class UNet(nn.Module):
    """The denoiser without its skip from input to output: `(N, num_ch, H, W)` of any size to the same shape."""

    def __init__(self, num_ch, num_feat):
        super().__init__()
        self.encoder = nn.ModuleList([convs(num_feat, 3, num_ch if stage == 0 else num_feat)
                                      for stage in range(STAGES)])
        self.shrink = nn.ModuleList([nn.Conv2d(num_feat, num_feat, 3, 2, 1) for _ in range(STAGES)])
        self.bottleneck = convs(num_feat, 1)
        self.enlarge = nn.ModuleList([nn.ConvTranspose2d(num_feat, num_feat, 3, 2, 1, 1) for _ in range(STAGES)])
        self.join = nn.ModuleList([nn.Conv2d(2 * num_feat, num_feat, 1) for _ in range(STAGES)])
        self.decoder = nn.ModuleList([convs(num_feat, 4) for _ in range(STAGES)])
        self.conv_last = nn.Conv2d(num_feat, num_ch, 3, 1, 1)

    def forward(self, x):
        skips = []
        for encoder, shrink in zip(self.encoder, self.shrink):
            skips.append(encoder(x))
            x = F.relu(shrink(skips[-1]))
        x = self.bottleneck(x)
        for enlarge, join, decoder in zip(self.enlarge, self.join, self.decoder):
            skip = skips.pop()
            x = F.relu(enlarge(x))[..., :skip.shape[-2], :skip.shape[-1]]  # an odd size was rounded up
            x = decoder(F.relu(join(torch.cat((x, skip), 1))))
        return self.conv_last(x)


def convs(num_feat, number, num_in_ch=None):
    """3x3 convolutions, each with its ReLU."""
    layers = []
    for layer in range(number):
        layers += [nn.Conv2d(num_in_ch or num_feat if layer == 0 else num_feat, num_feat, 3, 1, 1), nn.ReLU(True)]
    return nn.Sequential(*layers)


class _Bicubic(nn.Module):
    """Resizing by a whole number as a convolution, the border clamped: MATLAB's imresize without its rounding.

    `kernel` is saved with the weights: it is where the scale of a DPDNN can be read.
    """

    def __init__(self, kernels):
        super().__init__()
        self.register_buffer('kernel', torch.tensor(kernels, dtype=torch.float32).unsqueeze(1))

    def convolve(self, x, padding, stride):
        n, c, h, w = x.shape
        x = F.pad(x.reshape(n * c, 1, h, w), (padding,) * 4, mode='replicate')
        with torch.autocast(x.device.type, enabled=False):  # an image: see mixed_precision.py
            return F.conv2d(x, self.kernel, stride=stride)


class BicubicUp(_Bicubic):
    """`(N, C, H, W)` to `(N, C, scale * H, scale * W)`. One kernel for each place in a pixel."""

    def __init__(self, scale):
        places = (np.arange(scale) + 0.5) / scale - 0.5
        rows = cubic(places[:, None] - np.arange(-2, 3))
        super().__init__(np.einsum('iy,jx->ijyx', rows, rows).reshape(scale**2, 5, 5))
        self.scale = scale

    def forward(self, x):
        n, c, h, w = x.shape
        x = F.pixel_shuffle(self.convolve(x, 2, 1), self.scale)
        return x.reshape(n, c, self.scale * h, self.scale * w)


class BicubicDown(_Bicubic):
    """`(N, C, scale * H, scale * W)` to `(N, C, H, W)`, the kernel widened against aliasing."""

    def __init__(self, scale):
        distances = np.arange(-2 * scale, 3 * scale) - (scale - 1) / 2
        row = cubic(distances / scale)
        row /= row.sum()
        super().__init__(np.outer(row, row)[None])
        self.scale = scale

    def forward(self, x):
        n, c, h, w = x.shape
        return self.convolve(x, 2 * self.scale, self.scale).reshape(n, c, h // self.scale, w // self.scale)
