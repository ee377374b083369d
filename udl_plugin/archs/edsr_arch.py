"""EDSR with a variance head (step 1) and its step-2 network. Class, options and key names of BasicSR's EDSR."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from basicsr.archs.edsr_arch import EDSR
from torch import Tensor

from udl_plugin.archs.two_step import TwoStep
from udl_plugin.archs.with_variance import WithVariance, takes_options_of
from udl_plugin.archs.wrapping import HEAD, base_state_dict, sub_state_dict


def infer_edsr_config(state_dict: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Infers the options of the EDSR in a state dict of any stage from the shapes of its weights.

    Returns:
        The options that the shapes determine; None if it is not an EDSR.
    """
    weights = sub_state_dict(state_dict, 'var_net') or base_state_dict(state_dict)
    blocks = {name.split('.')[1] for name in weights if name.startswith('body.')}
    upsample = [layer for layer in (f'upsample.{2 * step}' for step in range(8)) if f'{layer}.weight' in weights]
    layers = ['conv_first', *(f'body.{block}.conv{conv}' for block in blocks for conv in (1, 2)), 'conv_after_body',
              *upsample, 'conv_last']
    names = {name for name in weights if not name.startswith(f'{HEAD}.')}
    if names != {f'{layer}.{part}' for layer in layers for part in ('weight', 'bias')} or not (blocks and upsample):
        return None
    shapes = [tuple(weights[f'{layer}.weight'].shape) for layer in layers]
    if any(len(shape) != 4 or 0 in shape for shape in shapes):
        return None
    num_feat, num_in_ch = shapes[0][:2]
    upscale = 1
    for layer in upsample:  # a pixel shuffle by 2 takes 4 times the channels, one by 3 takes 9 times
        upscale *= round((len(weights[f'{layer}.weight']) // num_feat)**0.5)
    return {'num_in_ch': num_in_ch, 'num_out_ch': shapes[-1][0], 'num_feat': num_feat, 'num_block': len(blocks),
            'upscale': upscale}


def edsr_receptive_radius(options: Mapping[str, Any]) -> int:
    """How many LR pixels away an EDSR and its variance head see: one for each 3x3 convolution.

    Convolutions at larger sizes count as a full pixel.

    Args:
        options: Config of the base network.
    """
    return 2 * options.get('num_block', 16) + 4


@takes_options_of(EDSR)
class EDSRVar(WithVariance):
    """BasicSR's EDSR plus a variance head, `var_conv`, on the features that enter its upsampler.

    Options and their defaults are those of `basicsr/archs/edsr_arch.py`. The authors' network has `res_scale: 0.1`,
    `img_range: 255`, `rgb_mean: [0, 0, 0]`, with 16 blocks of 64 features (EDSR-S) or 32 of 256 (EDSR).

    Args:
        num_in_ch, num_out_ch (int): 3 for RGB.
        num_feat (int): Channels of the features.
        num_block (int): Residual blocks.
        upscale (int): 2, 3, 4 or 8.
        res_scale (float): Factor on the output of each block.
        img_range (float): The input is multiplied by it, the output divided.
        rgb_mean (list[float]): Subtracted from the input, added to the output.
        features (str): See `WithVariance`.

    Raises:
        UserError: an unknown option.
    """

    options_from_weights = staticmethod(infer_edsr_config)


@takes_options_of(EDSR)
class EDSRTwo(TwoStep):
    """Step 2: `sr_net`, BasicSR's `EDSR`, and `var_net`, the frozen `EDSRVar` of step 1. Options as in `EDSRVar`."""

    options_from_weights = staticmethod(infer_edsr_config)
