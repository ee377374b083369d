"""What autocast must leave in float32: the convolutions that take an image, or make one.

Inside, networks have images in [0, 255], or nearly; there, bfloat16 has steps of 1.
"""
import torch
from torch import nn

from udl_plugin.archs.feature_hook import trace_modules
from udl_plugin.archs.two_step import TwoStep


def keep_image_convs_in_fp32(net):
    """Has autocast pass by, in place, the convolutions of `net` that take an image or make one, and its first and last
    one, which may do so with an image whose pixels are shuffled. Its parameters and their names stay as they are.
    Convolutions that are no `nn.Conv2d`, such as the blocks of ECBSR, are not reached.

    Args:
        net (nn.Module): One of ours, or of BasicSR.

    Raises:
        UserError: it cannot be run on a small image.
    """
    for part in (net.sr_net, net.var_net) if isinstance(net, TwoStep) else (net,):
        runs, lq, sr = trace_modules(part)
        ran = [run.module for run in runs if isinstance(run.module, nn.Conv2d)]
        for module in part.modules():
            if type(module) is nn.Conv2d and (
                    module.in_channels == lq[1] or module.out_channels == sr[1] or module in (*ran[:1], *ran[-1:])):
                module.__class__ = Float32Conv2d


class Float32Conv2d(nn.Conv2d):
    """A convolution in float32, whatever autocast says, of what came before it."""

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))
