"""Step-1 network: any super-resolution network of BasicSR's registry, plus a variance head."""
from __future__ import annotations

import inspect
import math
from typing import Any, Callable, TypeVar

import torch
from torch import Tensor, nn

from udl_plugin.archs.build import build_backbone
from udl_plugin.archs.feature_hook import FeatureCapture, capture_hook, find_feature_layer
from udl_plugin.archs.outputs import get_sr_image
from udl_plugin.archs.variance_head import VarianceHead
from udl_plugin.archs.wrapping import HEAD, HEAD_OPTIONS
from udl_plugin.errors import check_kwargs, reject_unknown_kwargs

T = TypeVar('T', bound=type)
LEARNING_SHARE = 2  # a detached head learns from one of so many images of a batch, and costs two thirds


@reject_unknown_kwargs
class WithVariance(nn.Module):
    """A base network, unchanged, and a variance head, `var_conv`, on the features that enter its upsampler.

    State dicts use the backbone's own names, plus `var_conv.*`: the weights of a pretrained base network load with
    `strict_load_g: false`, and the base network's class loads a checkpoint of this one the same way.

    Args:
        backbone: Config of the base network: `{type: RCAN, num_in_ch: 3, ...}`. It returns the SR image, or what
            `get_sr_image` finds it in.
        features: Name of the module of the backbone whose input the head takes, such as `upsample`; if it is called
            more than once, the input of its last call. None finds it by running the backbone on a small image: the
            first layer that enlarges features (of a convolution and a pixel shuffle, the convolution), or the last
            convolution if none does. Layers that take the image itself, such as a global skip, do not count.
        detach_features: Stop the head's gradient at the features: the head learns from them and does not shape them.
            For `JointUDL`, which then trains the backbone with its L1 term alone. In training it learns from half
            of the images of a batch.

    Raises:
        UserError: an unknown option or type, a backbone that cannot run, features that cannot be found.
    """

    trains_log_var = True

    def __init__(self, backbone: dict[str, Any], features: str | None = None, detach_features: bool = False):
        super().__init__()
        self.detach_features = detach_features
        self.backbone = build_backbone(backbone)
        layer = find_feature_layer(self.backbone, features)
        self.backbone.get_submodule(layer.module).register_forward_pre_hook(capture_hook)
        self.calls, self.scale, self.feature_layer = layer.calls, layer.scale, layer
        self.var_conv = VarianceHead(layer.num_feat, layer.num_out_ch, layer.upscale)

    def forward(self, x: Tensor, return_log_var: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """
        Args:
            x: LR image `(N, C, H, W)`, RGB in [0, 1].
            return_log_var: Also run the variance head.

        Returns:
            The SR image `(N, C, scale * H, scale * W)`; with `return_log_var`, the SR image and its log-variance of the
            same shape: the log of the error's scale in 8-bit levels, above -1.
        """
        if not return_log_var:
            return get_sr_image(self.backbone(x))
        with FeatureCapture() as capture:
            sr = get_sr_image(self.backbone(x))
        return sr, self._run_head(capture.features, x)

    def log_var(self, x: Tensor) -> Tensor:
        """Returns only the log-variance; stops the backbone as soon as it has the features."""
        with FeatureCapture(stop_after=self.calls) as capture:
            self.backbone(x)
        return self._run_head(capture.features, x)

    def _run_head(self, features: Tensor, x: Tensor) -> Tensor:
        height, width = x.shape[2:]  # a backbone that pads its input has larger features
        log_var = self._run_detached(features) if self.detach_features else self.var_conv(features)
        return log_var[:, :, :self.scale * height, :self.scale * width]

    def _run_detached(self, features: Tensor) -> Tensor:
        """Runs the head on features that get no gradient; in training, it learns from some images of the batch."""
        features = features.detach()
        number = math.ceil(len(features) / LEARNING_SHARE)
        if number == len(features) or not (self.training and torch.is_grad_enabled()):
            return self.var_conv(features)
        learning = self.var_conv(features[:number])  # first: autocast keeps the cast weights, here with gradient
        with torch.no_grad():
            others = self.var_conv(features[number:])
        return torch.cat((learning, others))

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = '', keep_vars: bool = False) -> Any:
        """Like `nn.Module.state_dict`, with the backbone's own names."""
        destination = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        long = f'{prefix}backbone.'
        for name in [name for name in destination if name.startswith(prefix)]:
            value = destination.pop(name)  # also where the name stays, to keep the order
            destination[prefix + name[len(long):] if name.startswith(long) else name] = value
        return destination

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in [name for name in state_dict if name.startswith(prefix)]:
            if not name.startswith(f'{prefix}{HEAD}.'):
                state_dict[f'{prefix}backbone.{name[len(prefix):]}'] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)


def takes_options_of(backbone: type[nn.Module], features: str | None = None) -> Callable[[T], T]:
    """Class decorator for a `WithVariance` or `TwoStep` of one base network: takes that network's options.

    Args:
        backbone: Class of the base network, in BasicSR's registry.
        features: Default of the option `features`; see `WithVariance`.
    """
    signature = inspect.signature(backbone)

    def decorate(cls: T) -> T:
        parameters = inspect.signature(cls.__bases__[0]).parameters
        own = {name: parameters[name].replace(kind=inspect.Parameter.KEYWORD_ONLY)
               for name in HEAD_OPTIONS if name in parameters}
        own['features'] = own['features'].replace(default=features)

        def __init__(self: Any, *args: Any, **options: Any) -> None:
            check_kwargs(cls, options)
            of_head = {name: options.pop(name, own[name].default) for name in own}
            config = {'type': backbone.__name__, **signature.bind(*args, **options).arguments}
            super(cls, self).__init__(config, **of_head)  # type: ignore[arg-type]

        cls.__init__ = __init__  # type: ignore[misc]
        cls.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*signature.parameters.values(), *own.values()])
        for name in ('required_multiple', 'receptive_radius'):
            if hasattr(backbone, name):
                setattr(cls, name, getattr(backbone, name))
        return cls

    return decorate
