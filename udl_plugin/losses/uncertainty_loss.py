"""The losses of 'Uncertainty-Driven Loss for Single Image Super-Resolution' (Ning et al., NeurIPS 2021).

Functions take the error `target - pred` in 8-bit levels and `log_var`, both of one shape, and return the term of every
pixel. Modules take images in [0, 1], as BasicSR has them, and return what `reduction` says.

The variance head of the paper cannot go below -1 (it ends in an ELU), and is made for errors in [0, 255]. With errors
in [0, 1] it saturates at -1 everywhere and UDL becomes plain L1; hence the modules' `img_range`.

BasicSR's `weighted_loss` is not used: it divides by the sum of the weights, and UDL is a plain mean.
"""
import torch
from torch import nn

from udl_plugin.errors import InputError, refuse_unknown_options


def gaussian_nll(error, log_var):
    """Gaussian negative log-likelihood: `exp(-s) * e^2 / 2 + s / 2` with `s = log_var`."""
    return (torch.exp(-log_var) * error**2 + log_var) / 2


def eu(error, log_var):
    """Estimating uncertainty, Laplace form: `exp(-s) * |e| + s`. Its optimum is `s = ln E|e|`."""
    return torch.exp(-log_var) * error.abs() + log_var


def esu(error, log_var):
    """Estimating sparse uncertainty, EU with Jeffreys' prior: `exp(-s) * |e| + 2 s`. Optimum: `s = ln(E|e| / 2)`."""
    return torch.exp(-log_var) * error.abs() + 2 * log_var


def udl_weight(log_var, offset=1.0):
    """The weight of each pixel in step 2: `s - min(s) + offset`, the minimum per image and per channel.

    Args:
        log_var (Tensor): `(N, C, H, W)`. No gradient flows through it.
        offset (float): 1 in the authors' released code, 0 in the paper.

    Returns:
        Tensor: `(N, C, H, W)`, at least `offset`.
    """
    log_var = log_var.detach()
    return log_var - log_var.amin(dim=(-2, -1), keepdim=True) + offset


def udl(error, log_var, offset=1.0):
    """Uncertainty-driven L1: `w * |e|` with `w = udl_weight(log_var, offset)`."""
    return udl_weight(log_var, offset) * error.abs()


class _UncertaintyLoss(nn.Module):
    """From images to one figure: range, per-pixel term, reduction, weight.

    Args:
        loss_weight (float): The result is multiplied by it.
        reduction (str): `mean` (over all pixels, channels and images), `sum`, or `none` for the map `(N, C, H, W)`.
        img_range (float): Images in [0, 1] are brought to [0, img_range]. Leave it at 255 (see above); to bring the
            loss itself to the size of BasicSR's `L1Loss`, beside a perceptual loss say, use `loss_weight: 0.00392`.

    Raises:
        InputError: an unknown option or `reduction`.
    """

    needs_log_var = True  # the model asks the network for it
    trains_log_var = True  # gradients reach the variance head: a loss of step 1

    def __init__(self, loss_weight=1.0, reduction='mean', img_range=255.0):
        super().__init__()
        if reduction not in ('none', 'mean', 'sum'):
            raise InputError(f"type: {type(self).__name__}: reduction is '{reduction}', not one of none, mean, sum.")
        self.loss_weight = loss_weight
        self.reduction = reduction
        self.img_range = img_range

    def term(self, error, log_var):
        """The loss of every pixel; `error` in [-img_range, img_range]."""
        raise NotImplementedError

    def forward(self, pred, target, log_var=None):
        """
        Args:
            pred (Tensor): SR image `(N, C, H, W)` in [0, 1].
            target (Tensor): Ground truth, same shape and range.
            log_var (Tensor): Log of the error's scale in 8-bit levels, same shape.

        Raises:
            ValueError: `log_var` is missing, or the shapes differ.
            FloatingPointError: the loss is not finite; says which input is to blame.
        """
        name = type(self).__name__
        if log_var is None:
            raise ValueError(f'{name} needs log_var: call the network with return_log_var=True (model_type: UDLModel '
                             'does), and use one that has it, such as EDSRVar or EDSRTwo.')
        if not pred.shape == target.shape == log_var.shape:
            raise ValueError(f'{name} needs three tensors of one shape, not pred {tuple(pred.shape)}, '
                             f'target {tuple(target.shape)}, log_var {tuple(log_var.shape)}.')
        loss = self.term((target - pred) * self.img_range, log_var)
        if self.reduction != 'none':
            loss = loss.mean() if self.reduction == 'mean' else loss.sum()
        if not torch.isfinite(loss).all():
            raise FloatingPointError(f'{name} is not finite. ' + _blame(pred=pred, target=target, log_var=log_var))
        return self.loss_weight * loss


def _blame(**inputs):
    bad = [f'{name} has {int((~torch.isfinite(x)).sum())} non-finite of {x.numel()} values'
           for name, x in inputs.items() if not torch.isfinite(x).all()]
    return '; '.join(bad) + '.' if bad else 'All inputs are finite: their sizes overflow; lower the learning rate.'


@refuse_unknown_options
class GaussianNLL(_UncertaintyLoss):
    __doc__ = f'{gaussian_nll.__doc__}\n\n{_UncertaintyLoss.__doc__}'

    def term(self, error, log_var):
        return gaussian_nll(error, log_var)


@refuse_unknown_options
class EU(_UncertaintyLoss):
    __doc__ = f'{eu.__doc__}\n\n{_UncertaintyLoss.__doc__}'

    def term(self, error, log_var):
        return eu(error, log_var)


@refuse_unknown_options
class ESU(_UncertaintyLoss):
    __doc__ = f'{esu.__doc__}\n\n{_UncertaintyLoss.__doc__}'

    def term(self, error, log_var):
        return esu(error, log_var)


@refuse_unknown_options
class UDL(_UncertaintyLoss):
    """Uncertainty-driven L1 of step 2: `(s - min(s) + offset) * |e|`, `s` from the frozen network of step 1.

    Args:
        offset (float): 1 as in the authors' released code, 0 as in the paper.
        loss_weight, reduction, img_range: as in the other losses.
    """

    trains_log_var = False

    def __init__(self, loss_weight=1.0, reduction='mean', img_range=255.0, offset=1.0):
        super().__init__(loss_weight, reduction, img_range)
        self.offset = offset

    def term(self, error, log_var):
        return udl(error, log_var, self.offset)
