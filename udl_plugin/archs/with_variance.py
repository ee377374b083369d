"""A variance head on any super-resolution network: where its features are found, and how they are taken out."""
import inspect

from torch import nn

from udl_plugin.archs.build import build_backbone
from udl_plugin.archs.feature_hook import FeatureCapture, capture_hook, find_feature_layer
from udl_plugin.archs.variance_head import VarianceHead
from udl_plugin.errors import check_kwargs, reject_unknown_kwargs

HEAD = 'var_conv'  # the name of the head in every state dict, as the authors have it


@reject_unknown_kwargs
class WithVariance(nn.Module):
    """A network of BasicSR's registry, as it is, plus a variance head, `var_conv`, on what enters its upsampler.

    State dicts have the backbone's own names and `var_conv.*` beside them: weights of the plain network go in with
    `strict_load_g: false`, and the network's own class takes them back.

    Args:
        backbone (dict): Its section of a yml: `{type: RCAN, num_in_ch: 3, ...}`.
        features (str): The module of the backbone whose input the head takes, such as `upsample`; where it runs more
            than once, its last run. Without it the place is found by watching the backbone at work: what enters the
            first layer that enlarges (of a convolution and pixel shuffle, the convolution), or the last convolution
            where none does.

    Raises:
        UserError: an unknown option or type, a backbone that cannot run, features that cannot be found.
    """

    trains_log_var = True

    def __init__(self, backbone, features=None):
        super().__init__()
        self.backbone = build_backbone(backbone)
        place = find_feature_layer(self.backbone, features)
        self.backbone.get_submodule(place.module).register_forward_pre_hook(capture_hook)
        self.runs, self.scale = place.runs, place.scale
        self.var_conv = VarianceHead(place.num_feat, place.num_out_ch, place.upscale)

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
            return self.backbone(x)
        with FeatureCapture() as taken:
            sr = self.backbone(x)
        return sr, self._head(taken, x)

    def log_var(self, x):
        """The log-variance alone: of the backbone, no more is run than the head needs."""
        with FeatureCapture(self.runs) as taken:
            self.backbone(x)
        return self._head(taken, x)

    def _head(self, taken, x):
        height, width = x.shape[2:]  # a backbone that pads its input has larger features
        return self.var_conv(taken.features)[:, :, :self.scale * height, :self.scale * width]

    def state_dict(self, *args, destination=None, prefix='', keep_vars=False):
        """As usual, but under the backbone's own names."""
        destination = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        ours = f'{prefix}backbone.'
        for name in [name for name in destination if name.startswith(prefix)]:
            value = destination.pop(name)  # all of them, so that their order stays
            destination[prefix + name[len(ours):] if name.startswith(ours) else name] = value
        return destination

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in [name for name in state_dict if name.startswith(prefix)]:
            if not name.startswith(f'{prefix}{HEAD}.'):
                state_dict[f'{prefix}backbone.{name[len(prefix):]}'] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)


def takes_options_of(backbone, features=None):
    """Class decorator for a `WithVariance` or `TwoStep` of one `backbone`, a class in BasicSR's registry: takes that
    class's options, with their defaults, and `features`.

    Args:
        backbone (type): Class of the network without a variance head.
        features (str): Default of the option `features`; see `WithVariance`.
    """
    signature = inspect.signature(backbone)
    own = inspect.Parameter('features', inspect.Parameter.KEYWORD_ONLY, default=features)

    def decorate(cls):
        def __init__(self, *args, features=features, **options):
            check_kwargs(cls, options)
            super(cls, self).__init__({'type': backbone.__name__, **signature.bind(*args, **options).arguments},
                                      features)

        cls.__init__ = __init__
        cls.__signature__ = signature.replace(parameters=[*signature.parameters.values(), own])
        return cls

    return decorate
