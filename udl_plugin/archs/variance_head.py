"""The branch that predicts the log-variance of the SR image."""
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
            UpsampleConv2d(num_feat, num_feat, upscale), nn.ELU(),
            nn.Conv2d(num_feat, num_feat, 3, 1, 1), nn.ELU(),
            nn.Conv2d(num_feat, num_out_ch, 3, 1, 1), nn.ELU(),
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
        taps = F.pad(self.weight.flip(2, 3), (self.upscale - 1,) * 4)
        kernel = F.avg_pool2d(taps, self.upscale, stride=1, divisor_override=1)  # (num_out, num_in, upscale + 2, ...)
        return F.conv_transpose2d(x, kernel.transpose(0, 1), self.bias, self.upscale, padding=1)
