"""An independent implementation of the authors' networks, for comparison; it shares no code with the package.

Images are in [0, 255]. The step-1 network returns the SR image and the log-variance; that of step 2 contains it twice.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
                                  nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x):
        return x + 0.1 * self.body(x)


class AuthorsEDSR(nn.Module):
    def __init__(self, channels=64, blocks=16, scale=4):
        super().__init__()
        self.scale = scale
        self.head = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1))
        self.body = nn.Sequential(*[Block(channels) for _ in range(blocks)],
                                  nn.Conv2d(channels, channels, 3, padding=1))
        steps = [3] if scale == 3 else [2] * int(math.log2(scale))
        upsampler = []
        for step in steps:
            upsampler += [nn.Conv2d(channels, channels * step * step, 3, padding=1), nn.PixelShuffle(step)]
        self.tail = nn.Sequential(nn.Sequential(*upsampler), nn.Conv2d(channels, 3, 3, padding=1))
        self.var_conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ELU(),
            nn.Conv2d(channels, channels, 3, padding=1), nn.ELU(),
            nn.Conv2d(channels, 3, 3, padding=1), nn.ELU())

    def forward(self, x):
        x = self.head(x)
        x = x + self.body(x)
        enlarged = x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        return self.tail(x), self.var_conv(enlarged)


class AuthorsTwo(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.EDSR_var = AuthorsEDSR(**options)
        self.EDSR_U = AuthorsEDSR(**options)
        self.EDSR_U.load_state_dict(self.EDSR_var.state_dict())

    def forward(self, x):
        with torch.no_grad():
            _, log_var = self.EDSR_var(x)
        return self.EDSR_U(x)[0], log_var


def authors_esu(sr, hr, log_var):
    """ESU in [0, 255]: the L1 loss of the scaled images, and the term that keeps the variance small."""
    scale = torch.exp(-log_var)
    return F.l1_loss(sr * scale, hr * scale) + 2 * log_var.mean()
