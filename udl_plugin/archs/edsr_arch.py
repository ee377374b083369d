"""EDSR with a variance head (step 1), and the pair of step 2. Class, options and key names of BasicSR's EDSR."""
from basicsr.archs.edsr_arch import EDSR

from udl_plugin.archs.two_step import TwoStep
from udl_plugin.archs.with_variance import WithVariance, takes_options_of
from udl_plugin.archs.wrapping import base_state_dict, sub_state_dict


def infer_edsr_config(state_dict):
    """Options of the EDSR in a state dict of either step, as far as weights tell; None where there is none."""
    weights = sub_state_dict(state_dict, 'var_net') or base_state_dict(state_dict)
    numbers = {name.split('.')[1] for name in weights if name.startswith('body.')}
    upsample = [layer for layer in (f'upsample.{2 * step}' for step in range(8)) if f'{layer}.weight' in weights]
    layers = ['conv_first', *(f'body.{number}.conv{one}' for number in numbers for one in (1, 2)), 'conv_after_body',
              *upsample, 'conv_last']
    own = {name for name in weights if not name.startswith('var_conv.')}
    if own != {f'{layer}.{part}' for layer in layers for part in ('weight', 'bias')} or not (numbers and upsample):
        return None
    shapes = [tuple(weights[f'{layer}.weight'].shape) for layer in layers]
    if any(len(shape) != 4 or 0 in shape for shape in shapes):
        return None
    num_feat, num_in_ch = shapes[0][:2]
    upscale = 1
    for layer in upsample:  # a step of 2 has 4 times the channels, one of 3 has 9 times
        upscale *= round((len(weights[f'{layer}.weight']) // num_feat)**0.5)
    return {'num_in_ch': num_in_ch, 'num_out_ch': shapes[-1][0], 'num_feat': num_feat, 'num_block': len(numbers),
            'upscale': upscale}


def edsr_receptive_radius(options):
    """How far an EDSR and its variance head see from a pixel, in LR pixels: its 3x3 convolutions, those at larger sizes
    rounded up. `options` as `edsr_options` gives them."""
    return 2 * options.get('num_block', 16) + 4


@takes_options_of(EDSR)
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
        UserError: an unknown option.
    """

    options_from_weights = staticmethod(infer_edsr_config)


@takes_options_of(EDSR)
class EDSRTwo(TwoStep):
    """Step 2: `sr_net`, a plain `EDSR` of BasicSR, and `var_net`, the frozen `EDSRVar` of step 1. Options as there."""

    options_from_weights = staticmethod(infer_edsr_config)
