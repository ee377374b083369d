"""EDSR with a variance head (step 1), and the pair of step 2. Class, options and key names of BasicSR's EDSR."""
from basicsr.archs.edsr_arch import EDSR

from udl_plugin.archs.two_step import TwoStep
from udl_plugin.archs.with_variance import WithVariance, with_options_of
from udl_plugin.checkpoints import branch


def edsr_options(state_dict):
    """Options of the EDSR in a state dict of either step, as far as weights tell; None where there is none."""
    weights = branch(state_dict, 'var_net') or state_dict
    if any(f'{name}.weight' not in weights for name in ('conv_first', 'conv_after_body', 'upsample.0', 'conv_last')):
        return None
    body = [name.split('.') for name in weights if name.startswith('body.')]
    if any(part not in ('conv1', 'conv2') for _, _, part, *_ in body):
        return None  # RCAN and others have the names above too, but other blocks
    num_feat, num_in_ch = weights['conv_first.weight'].shape[:2]
    num_out_ch = weights['conv_last.weight'].shape[0]
    factors = [weight.shape[0] // num_feat for name, weight in weights.items()
               if name.startswith('upsample.') and name.endswith('.weight')]
    upscale = 1
    for factor in factors:  # a step of 2 has 4 times the channels, one of 3 has 9 times
        upscale *= round(factor**0.5)
    return {'num_in_ch': num_in_ch, 'num_out_ch': num_out_ch, 'num_feat': num_feat,
            'num_block': len({number for _, number, *_ in body}), 'upscale': upscale}


def edsr_reach(options):
    """How far an EDSR and its variance head see from a pixel, in LR pixels: its 3x3 convolutions, those at larger sizes
    rounded up. `options` as `edsr_options` gives them."""
    return 2 * options.get('num_block', 16) + 4


@with_options_of(EDSR)
class EDSRVar(WithVariance):
    """BasicSR's EDSR plus a variance head, `var_conv`, on the features that enter its upsampler.

    Options and their defaults are those of `basicsr/archs/edsr_arch.py`. The authors' network is `res_scale: 0.1`,
    `img_range: 255`, `rgb_mean: [0, 0, 0]`, with 16 blocks of 64 features (EDSR-S) or 32 of 256 (EDSR).

    Args:
        num_in_ch, num_out_ch (int): 3 for RGB.
        num_feat (int): Channels of the features.
        num_block (int): Residual blocks.
        upscale (int): 2, 3, 4 or 8.
        res_scale (float): Each block adds its result times this.
        img_range (float): The input is multiplied by it, the output divided.
        rgb_mean (list[float]): Subtracted from the input, added to the output.

    Raises:
        InputError: an unknown option.
    """

    options_from_weights = staticmethod(edsr_options)


@with_options_of(EDSR)
class EDSRTwo(TwoStep):
    """Step 2: `sr_net`, a plain `EDSR` of BasicSR, and `var_net`, the frozen `EDSRVar` of step 1. Options as there."""

    options_from_weights = staticmethod(edsr_options)
