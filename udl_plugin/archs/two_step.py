"""Step-2 network: a trainable SR network and the frozen step-1 network that provides the uncertainty map."""
from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from udl_plugin.archs.build import build_backbone
from udl_plugin.archs.outputs import get_sr_image
from udl_plugin.archs.with_variance import WithVariance
from udl_plugin.errors import reject_unknown_kwargs

Net = TypeVar('Net', bound=nn.Module)


@reject_unknown_kwargs
class TwoStep(nn.Module):
    """A trainable base network, `sr_net`, and the frozen step-1 network, `var_net`, that gives its log-variance.

    `sr_net` is what ships after step 2. `var_net` is a `WithVariance` of the same base network. Its tensors are
    buffers, not parameters: they are saved, loaded and moved with the rest, but no optimizer, EMA or parameter count
    finds them, whichever framework trains the network.

    Args:
        backbone, features: As in `WithVariance`, and the same as in step 1.

    Raises:
        UserError: see `WithVariance`.
    """

    trains_log_var = False

    def __init__(self, backbone: dict[str, Any], features: str | None = None):
        super().__init__()
        self.sr_net = build_backbone(backbone)
        self.var_net = freeze(WithVariance(backbone, features))
        # DistributedDataParallel would broadcast these in every iteration; they never change
        self._ddp_params_and_buffers_to_ignore = [f'var_net.{name}' for name, _ in self.var_net.named_buffers()]

    def train(self, mode: bool = True) -> TwoStep:
        """Like `nn.Module.train`, but `var_net` stays in eval mode."""
        super().train(mode)
        self.var_net.eval()
        return self

    def forward(self, x: Tensor, return_log_var: bool = False,
                return_frozen_sr: bool = False) -> Tensor | tuple[Tensor, ...]:
        """
        Args:
            x: LR image `(N, C, H, W)`, RGB in [0, 1].
            return_log_var: Also run `var_net`, up to its variance head.
            return_frozen_sr: Also run `var_net` up to its SR image.

        Returns:
            The SR image `(N, C, scale * H, scale * W)`. With either flag, a tuple of the SR image, the log-variance (if
            requested) and the SR image of `var_net` (if requested); the latter two of the same shape, without gradient.
        """
        if not (return_log_var or return_frozen_sr):
            return get_sr_image(self.sr_net(x))
        with torch.no_grad():  # before `sr_net`: the memory that it takes is free again by then
            frozen = self._run_frozen(x, return_log_var, return_frozen_sr)
        return (get_sr_image(self.sr_net(x)), *frozen)

    def _run_frozen(self, x: Tensor, return_log_var: bool, return_frozen_sr: bool) -> tuple[Tensor, ...]:
        if not return_frozen_sr:
            return (self.var_net.log_var(x),)
        if not return_log_var:
            return (self.var_net(x),)
        frozen_sr, log_var = self.var_net(x, return_log_var=True)
        return log_var, frozen_sr

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a state dict of this network, or one of step 1 into both branches."""
        return super().load_state_dict(self.expand(state_dict), *args, **kwargs)

    def expand(self, state_dict: Any) -> Any:
        """Returns a step-1 state dict with its tensors under the names of both branches; others unchanged."""
        if any(name.startswith(('sr_net.', 'var_net.')) for name in state_dict):
            return state_dict
        shared = self.sr_net.state_dict().keys()
        return {
            **{f'sr_net.{name}': value for name, value in state_dict.items() if name in shared},
            **{f'var_net.{name}': value for name, value in state_dict.items()},
        }


def freeze(net: Net) -> Net:
    """Turns the parameters of `net` into buffers, in place, sets it to eval mode and returns it."""
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    return net.eval()
