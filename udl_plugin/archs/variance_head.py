"""The branch that predicts the log-variance of the SR image."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class VarianceHead(nn.Sequential):
    """Nearest-neighbour upsampling, then three times 3x3 convolution and ELU, as in the reference implementation.

    Maps the features that enter the network's upsampler, `(N, num_feat, H, W)`, to the log-variance
    `(N, num_out_ch, upscale * H, upscale * W)`. The ELU keeps it above -1, hence `exp(-log_var)` below e.

    Args:
        num_feat: Channels of the features.
        num_out_ch: Channels of the image.
        upscale: Size of the image over the size of the features; 1 if the network works at the image's size.
    """

    def __init__(self, num_feat: int, num_out_ch: int, upscale: int):
        super().__init__(
            UpsampleConv2d(num_feat, num_feat, upscale), nn.ELU(inplace=True),
            nn.Conv2d(num_feat, num_feat, 3, 1, 1), nn.ELU(inplace=True),
            nn.Conv2d(num_feat, num_out_ch, 3, 1, 1), nn.ELU(inplace=True),
        )


class UpsampleConv2d(nn.Conv2d):
    """Nearest-neighbour upsampling and a 3x3 convolution in one, with the parameters of the latter.

    The copies of a pixel are summed in the kernel instead of the image, which makes this a transposed convolution. The
    result is the same, with 16 instead of 36 multiply-adds per pixel for an upscale of 2, and 36 instead of 144 for 4.
    """

    def __init__(self, num_in: int, num_out: int, upscale: int):
        super().__init__(num_in, num_out, 3, 1, 1)
        self.upscale = upscale

    def forward(self, x: Tensor) -> Tensor:
        if self.upscale == 1:
            return super().forward(x)
        return F.conv_transpose2d(x, self.merge_kernel(), self.bias, self.upscale, padding=1)

    def merge_kernel(self) -> Tensor:
        """Sums, at each position of the transposed kernel, the taps that meet a copy of the pixel.

        Returns:
            `(num_in, num_out, upscale + 2, upscale + 2)`.
        """
        positions = torch.arange(self.upscale + 2, device=self.weight.device)[:, None]
        copies = positions + torch.arange(3, device=self.weight.device) - 2
        meets = ((copies >= 0) & (copies < self.upscale)).to(self.weight.dtype)
        with torch.autocast(self.weight.device.type, enabled=False):  # sums of weights: round once, afterwards
            kernel = torch.einsum('iy,onyx,jx->noij', meets, self.weight, meets)
        # on the CPU the faster format, whatever that of the features is: 243 ms instead of 359 for a float32 head
        return kernel.contiguous(memory_format=torch.channels_last) if kernel.device.type == 'cpu' else kernel
