"""Keeps the convolutions that read or write an image in float32 under autocast.

Inside, networks scale images to about [0, 255]; there, steps of bfloat16 are as large as 1.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from udl_plugin.archs.build import trace_modules
from udl_plugin.archs.two_step import TwoStep


def keep_image_convs_in_fp32(net: nn.Module) -> None:
    """Makes autocast skip, in place, the convolutions of `net` that have an image as input or output.

    These are the ones with the image's number of channels, and the first and the last one to run: a pixel shuffle may
    lie between them and the image. Parameters and their names stay. Convolutions that are not an `nn.Conv2d`, such as
    the blocks of ECBSR, are not covered.

    Args:
        net: A network of this package or of BasicSR.

    Raises:
        UserError: it cannot be run on a small image.
    """
    for part in (net.sr_net, net.var_net) if isinstance(net, TwoStep) else (net,):
        calls, lq, sr = trace_modules(part)
        ran = [call.module for call in calls if isinstance(call.module, nn.Conv2d)]
        for module in part.modules():
            if type(module) is nn.Conv2d and (
                    module.in_channels == lq[1] or module.out_channels == sr[1] or module in (*ran[:1], *ran[-1:])):
                module.__class__ = Float32Conv2d


class Float32Conv2d(nn.Conv2d):
    """A convolution that runs in float32 under autocast too, whatever the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))
