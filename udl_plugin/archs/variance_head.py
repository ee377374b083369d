"""The branch that predicts the log-variance of the SR image."""
import torch
from torch import nn
from torch.nn import functional as F


class VarianceHead(nn.Sequential):
    """Nearest-neighbour upsampling, then three times 3x3 convolution and ELU, as the authors have it.

    Takes what the network's upsampler takes, `(N, num_feat, H, W)`, to `(N, num_out_ch, upscale * H, upscale * W)`. The
    ELU keeps the result above -1, hence `exp(-log_var)` below e.

    Args:
        num_feat (int): Channels of the features.
        num_out_ch (int): Channels of the image.
        upscale (int): Size of the image over the size of the features; 1 where the network works at that size.
    """

    def __init__(self, num_feat, num_out_ch, upscale):
        super().__init__(
            UpsampleConv2d(num_feat, num_feat, upscale), nn.ELU(inplace=True),
            nn.Conv2d(num_feat, num_feat, 3, 1, 1), nn.ELU(inplace=True),
            nn.Conv2d(num_feat, num_out_ch, 3, 1, 1), nn.ELU(inplace=True),
        )


class UpsampleConv2d(nn.Conv2d):
    """Nearest-neighbour upsampling and a 3x3 convolution in one, with the parameters of the latter.

    The copies of a pixel are summed in the kernel, not in the image, which makes it a transposed convolution: the same
    result for 16 multiply-adds in place of 36 at an upscale of 2, and 36 in place of 144 at 4.
    """

    def __init__(self, num_in, num_out, upscale):
        super().__init__(num_in, num_out, 3, 1, 1)
        self.upscale = upscale

    def forward(self, x):
        if self.upscale == 1:
            return super().forward(x)
        return F.conv_transpose2d(x, self._kernel(), self.bias, self.upscale, padding=1)

    def _kernel(self):
        """`(num_in, num_out, upscale + 2, upscale + 2)`: at each place the taps that meet a copy of the pixel."""
        places = torch.arange(self.upscale + 2, device=self.weight.device)[:, None]
        copies = places + torch.arange(3, device=self.weight.device) - 2
        meets = ((copies >= 0) & (copies < self.upscale)).to(self.weight.dtype)
        with torch.autocast(self.weight.device.type, enabled=False):  # sums of weights; rounded once, afterwards
            kernel = torch.einsum('iy,onyx,jx->noij', meets, self.weight, meets)
        # on the CPU the faster format, whatever that of the features is: a float32 head took 243 ms in place of 359
        return kernel.contiguous(memory_format=torch.channels_last) if kernel.device.type == 'cpu' else kernel
