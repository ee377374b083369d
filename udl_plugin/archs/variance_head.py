"""The branch that predicts the log-variance of the SR image."""
from torch import nn
from torch.nn import functional as F


class VarianceHead(nn.Sequential):
    """Nearest-neighbour upsampling, then three times 3x3 convolution and ELU, as the authors have it.

    Takes what the network's upsampler takes. The ELU keeps the result above -1, hence `exp(-log_var)` below e.

    Args:
        num_feat (int): Channels of the features.
        num_out_ch (int): Channels of the image.
        upscale (int): Size of the image over the size of the features; 1 where the network works at that size.
    """

    def __init__(self, num_feat, num_out_ch, upscale):
        super().__init__(
            nn.Conv2d(num_feat, num_feat, 3, 1, 1), nn.ELU(),
            nn.Conv2d(num_feat, num_feat, 3, 1, 1), nn.ELU(),
            nn.Conv2d(num_feat, num_out_ch, 3, 1, 1), nn.ELU(),
        )
        self.upscale = upscale

    def forward(self, feat):
        """`(N, num_feat, H, W)` to `(N, num_out_ch, upscale * H, upscale * W)`."""
        if self.upscale != 1:
            feat = F.interpolate(feat, scale_factor=self.upscale, mode='nearest')
        return super().forward(feat)
