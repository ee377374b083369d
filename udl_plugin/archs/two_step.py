"""The pair of networks of step 2: one that is trained, and step 1's, frozen, that tells where to look."""
import torch
from torch import nn

from udl_plugin.archs.build import build_backbone
from udl_plugin.archs.with_variance import WithVariance
from udl_plugin.errors import reject_unknown_kwargs


@reject_unknown_kwargs
class TwoStep(nn.Module):
    """A trained SR network, `sr_net`, beside the frozen one of step 1, `var_net`, that gives its log-variance.

    `sr_net` ships after step 2: a plain network of BasicSR, of the backbone's class. `var_net` is a `WithVariance` of
    the same backbone. Its tensors are buffers, not parameters: they are saved, loaded and moved with the rest, but no
    optimizer, EMA or parameter count finds them, whoever trains the network.

    Args:
        backbone, features: As in `WithVariance`, and the same as in step 1.

    Raises:
        UserError: see `WithVariance`.
    """

    trains_log_var = False

    def __init__(self, backbone, features=None):
        super().__init__()
        self.sr_net = build_backbone(backbone)
        self.var_net = freeze(WithVariance(backbone, features))
        # DistributedDataParallel would send these from rank 0 in every iteration; they never change
        self._ddp_params_and_buffers_to_ignore = [f'var_net.{name}' for name, _ in self.var_net.named_buffers()]

    def train(self, mode=True):
        """As usual, but `var_net` stays in eval mode."""
        super().train(mode)
        self.var_net.eval()
        return self

    def forward(self, x, return_log_var=False, return_frozen_sr=False):
        """
        Args:
            x (Tensor): LR image `(N, C, H, W)` in [0, 1].
            return_log_var (bool): Also run `var_net`, up to its variance head.
            return_frozen_sr (bool): Also run `var_net` to its SR image.

        Returns:
            Tensor | tuple[Tensor]: The SR image `(N, C, upscale * H, upscale * W)`; with others asked for, the tuple of
            it, the log-variance and the SR image of `var_net`, as far as asked for, of its shape, without gradient.
        """
        maps = ()
        if return_log_var or return_frozen_sr:
            with torch.no_grad():  # first: what it needs in memory is free again when `sr_net` fills it
                maps = self._maps(x, return_log_var, return_frozen_sr)
        sr = self.sr_net(x)
        return (sr, *maps) if maps else sr

    def _maps(self, x, return_log_var, return_frozen_sr):
        if not return_frozen_sr:
            return (self.var_net.log_var(x),)
        if not return_log_var:
            return (self.var_net(x),)
        frozen_sr, log_var = self.var_net(x, return_log_var=True)
        return log_var, frozen_sr

    def load_state_dict(self, state_dict, *args, **kwargs):
        """Takes a state dict of this network, or one of step 1, which then goes into both branches."""
        return super().load_state_dict(self.expand(state_dict), *args, **kwargs)

    def expand(self, state_dict):
        """Returns `state_dict` with a step-1 network's tensors under both branches' names; leaves others as they are.
        """
        if any(name.startswith(('sr_net.', 'var_net.')) for name in state_dict):
            return state_dict
        shared = self.sr_net.state_dict().keys()
        return {
            **{f'sr_net.{name}': value for name, value in state_dict.items() if name in shared},
            **{f'var_net.{name}': value for name, value in state_dict.items()},
        }


def freeze(net):
    """Turns the parameters of `net` into buffers, in place, sets it to eval mode and returns it."""
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    return net.eval()
