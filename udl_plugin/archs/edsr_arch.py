"""EDSR with a variance head (step 1), and the pair of step 2. Class, options and key names of BasicSR's EDSR."""
from basicsr.archs.edsr_arch import EDSR

from udl_plugin.archs.two_step import TwoStep
from udl_plugin.archs.variance_head import VarianceHead
from udl_plugin.errors import refuse_unknown_options


@refuse_unknown_options
class EDSRVar(EDSR):
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

    trains_log_var = True

    def __init__(self, num_in_ch, num_out_ch, num_feat=64, num_block=16, upscale=4, res_scale=1, img_range=255.,
                 rgb_mean=(0.4488, 0.4371, 0.4040)):
        super().__init__(num_in_ch, num_out_ch, num_feat, num_block, upscale, res_scale, img_range, rgb_mean)
        self.var_conv = VarianceHead(num_feat, num_out_ch, upscale)

    def forward(self, x, return_log_var=False):
        """
        Args:
            x (Tensor): LR image `(N, C, H, W)`, RGB in [0, 1].
            return_log_var (bool): Also run the variance head.

        Returns:
            Tensor | tuple[Tensor]: The SR image `(N, C, upscale * H, upscale * W)`; with `return_log_var` the pair of
            it and its log-variance of the same shape: the log of the error's scale in 8-bit levels, above -1.
        """
        if not return_log_var:
            return super().forward(x)
        feat = self.features(x)
        sr = self.conv_last(self.upsample(feat)) / self.img_range + self.mean
        return sr, self.var_conv(feat)

    def features(self, x):
        """`(N, C, H, W)` in [0, 1] to what enters the upsampler, `(N, num_feat, H, W)`."""
        self.mean = self.mean.type_as(x)
        feat = self.conv_first((x - self.mean) * self.img_range)
        return self.conv_after_body(self.body(feat)) + feat

    def log_var(self, x):
        """The log-variance alone: neither upsampler nor last convolution is run."""
        return self.var_conv(self.features(x))

    @staticmethod
    def options_from_weights(state_dict):
        """Reads the options that shape the weights back from them; returns None where they are not an EDSR's."""
        return edsr_options(state_dict)


@refuse_unknown_options
class EDSRTwo(TwoStep):
    """Step 2: `sr_net`, a plain `EDSR` of BasicSR, and `var_net`, the frozen `EDSRVar` of step 1. Options as there."""

    def __init__(self, num_in_ch, num_out_ch, num_feat=64, num_block=16, upscale=4, res_scale=1, img_range=255.,
                 rgb_mean=(0.4488, 0.4371, 0.4040)):
        options = (num_in_ch, num_out_ch, num_feat, num_block, upscale, res_scale, img_range, rgb_mean)
        super().__init__(EDSR(*options), EDSRVar(*options))

    @staticmethod
    def options_from_weights(state_dict):
        """As `EDSRVar.options_from_weights`; takes the state dict of either step."""
        prefix = 'var_net.'
        of_var_net = {name[len(prefix):]: value for name, value in state_dict.items() if name.startswith(prefix)}
        return edsr_options(of_var_net or state_dict)


def edsr_options(state_dict):
    """Options of the EDSR that `state_dict` belongs to, as far as weights tell; None where it is not one."""
    if any(f'{name}.weight' not in state_dict for name in ('conv_first', 'conv_after_body', 'upsample.0', 'conv_last')):
        return None
    num_feat, num_in_ch = state_dict['conv_first.weight'].shape[:2]
    num_out_ch = state_dict['conv_last.weight'].shape[0]
    factors = [weight.shape[0] // num_feat for name, weight in state_dict.items()
               if name.startswith('upsample.') and name.endswith('.weight')]
    upscale = 1
    for factor in factors:  # a step of 2 has 4 times the channels, one of 3 has 9 times
        upscale *= round(factor**0.5)
    blocks = {name.split('.')[1] for name in state_dict if name.startswith('body.')}
    return {'num_in_ch': num_in_ch, 'num_out_ch': num_out_ch, 'num_feat': num_feat, 'num_block': len(blocks),
            'upscale': upscale}
