"""The frozen network whose SR image gives the weights of `source: teacher_residual` and `teacher_error`."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from udl_plugin.archs.outputs import get_sr_image
from udl_plugin.archs.padding import get_required_multiple, pad_to_multiple
from udl_plugin.archs.two_step import freeze
from udl_plugin.checkpoints.network_file import load_network_file
from udl_plugin.errors import UserError


class Teacher:
    """Any SR network in a file, such as a published one. Not a module: no optimizer or checkpoint finds it.

    Args:
        options: `path` of the file, which `load_network_file` reads; optionally `param_key`, and `network_g`, its
            config, where the file does not record it. Of a network of step 1 or 2, the base network is used.
        scale: That the SR images must have.
        convert: Prepares the network, in place, for precision and memory format.

    Raises:
        UserError: the file cannot be read, does not fit `network_g`, or is of another scale.
    """

    def __init__(self, options: Mapping[str, Any], scale: int | None = None,
                 convert: Callable[[nn.Module], Any] = lambda net: None):
        file = load_network_file(options['path'], options.get('param_key'), options.get('network_g')).base()
        own_scale = file.channels_and_scale[1]
        if scale not in (None, own_scale):
            raise UserError(f"'{options['path']}' enlarges by {own_scale}, and the scale of this training is {scale}.")
        self.scale, self.multiple = own_scale, get_required_multiple(file.network_g)
        self.net = freeze(file.build())
        convert(self.net)

    @torch.no_grad()
    def run(self, lq: Tensor, required: Sequence[str]) -> dict[str, Tensor]:
        """Returns those `TEACHER_OUTPUTS` that a loss requires, float32, as large as the SR image.

        Args:
            lq: `(N, C, H, W)` in [0, 1].
            required: Names of outputs; others are ignored.
        """
        outputs: dict[str, Tensor] = {}
        height, width = (self.scale * size for size in lq.shape[2:])
        if 'teacher_sr' in required:
            sr = get_sr_image(self.net.to(lq.device)(pad_to_multiple(lq, self.multiple)))
            outputs['teacher_sr'] = sr[:, :, :height, :width].float()
        if 'bicubic' in required:  # antialias=True has the kernel of MATLAB and PIL, a = -0.5
            outputs['bicubic'] = F.interpolate(lq.float(), (height, width), mode='bicubic', antialias=True)
        return outputs
