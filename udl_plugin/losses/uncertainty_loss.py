"""The losses of 'Uncertainty-Driven Loss for Single Image Super-Resolution' (Ning et al., NeurIPS 2021).

Functions take the error `target - pred` in 8-bit levels and `log_var`, both of one shape, and return the term of every
pixel. Modules take images in [0, 1], as BasicSR has them, and return what `reduction` says.

The variance head of the paper cannot go below -1 (it ends in an ELU), and is made for errors in [0, 255]. With errors
in [0, 1] it saturates at -1 everywhere and UDL becomes plain L1; hence the modules' `img_range`.

BasicSR's `weighted_loss` is not used: it divides by the sum of the weights, and UDL is a plain mean.
"""
import torch
from torch import nn

from udl_plugin.errors import UserError, did_you_mean, reject_unknown_kwargs
from udl_plugin.losses.weights import SCALINGS, SOURCES, udl_weight


def gaussian_nll(error, log_var):
    """Gaussian negative log-likelihood: `exp(-s) * e^2 / 2 + s / 2` with `s = log_var`."""
    return (torch.exp(-log_var) * error**2 + log_var) / 2


def eu(error, log_var):
    """Estimating uncertainty, Laplace form: `exp(-s) * |e| + s`. Its optimum is `s = ln E|e|`."""
    return torch.exp(-log_var) * error.abs() + log_var


def esu(error, log_var):
    """Estimating sparse uncertainty, EU with Jeffreys' prior: `exp(-s) * |e| + 2 s`. Optimum: `s = ln(E|e| / 2)`."""
    return torch.exp(-log_var) * error.abs() + 2 * log_var


def udl(error, source_map, offset=1.0, scaling='linear'):
    """Uncertainty-driven L1: `w * |e|` with `w = udl_weight(source_map, offset, scaling)`; the paper's map is `s`."""
    return udl_weight(source_map, offset, scaling) * error.abs()


class _UncertaintyLoss(nn.Module):
    """From images to one figure: range, per-pixel term, reduction, weight.

    Args:
        loss_weight (float): The result is multiplied by it.
        reduction (str): `mean` (over all pixels, channels and images), `sum`, or `none` for the map `(N, C, H, W)`.
        img_range (float): Images in [0, 1] are brought to [0, img_range]. Leave it at 255 (see above); to bring the
            loss itself to the size of BasicSR's `L1Loss`, beside a perceptual loss say, use `loss_weight: 0.00392`.

    Raises:
        UserError: an unknown option or `reduction`.
    """

    required_outputs = ('log_var',)  # the model asks the network for it: return_log_var=True
    trains_log_var = True  # gradients reach the variance head: a loss of step 1

    def __init__(self, loss_weight=1.0, reduction='mean', img_range=255.0):
        super().__init__()
        if reduction not in ('none', 'mean', 'sum'):
            raise UserError(f"type: {type(self).__name__}: reduction is '{reduction}', not one of none, mean, sum.")
        self.loss_weight = loss_weight
        self.reduction = reduction
        self.img_range = img_range

    def term(self, error, gt, log_var, frozen_error):
        """The loss of every pixel; errors, of the network and of the frozen one, and ground truth times img_range."""
        raise NotImplementedError

    def forward(self, pred, target, log_var=None, frozen_sr=None):
        """
        Args:
            pred (Tensor): SR image `(N, C, H, W)` in [0, 1].
            target (Tensor): Ground truth, same shape and range.
            log_var (Tensor): Log of the error's scale in 8-bit levels, same shape.
            frozen_sr (Tensor): SR image of the frozen network of step 1, same shape and range. Only `UDL` may need it.

        Raises:
            ValueError: one that is needed is missing, or the shapes differ.
            FloatingPointError: the loss is not finite; says which input is to blame.
        """
        name, given = type(self).__name__, {'log_var': log_var, 'frozen_sr': frozen_sr}
        inputs = {'pred': pred, 'target': target, **{need: given[need] for need in self.required_outputs}}
        for need in self.required_outputs:
            if given[need] is None:
                raise ValueError(f'{name} needs {need}: call the network with return_{need}=True (model_type: UDLModel '
                                 'does), and use one that has it, such as EDSRTwo.')
        if len({tensor.shape for tensor in inputs.values()}) > 1:
            raise ValueError(f'{name} needs tensors of one shape, not '
                             + ', '.join(f'{key} {tuple(tensor.shape)}' for key, tensor in inputs.items()) + '.')
        frozen_error = None if frozen_sr is None else (target - frozen_sr) * self.img_range
        loss = self.term((target - pred) * self.img_range, target * self.img_range, log_var, frozen_error)
        if self.reduction != 'none':
            loss = loss.mean() if self.reduction == 'mean' else loss.sum()
        if not torch.isfinite(loss).all():
            raise FloatingPointError(f'{name} is not finite. ' + _blame(**inputs))
        return self.loss_weight * loss


def _blame(**inputs):
    bad = [f'{name} has {int((~torch.isfinite(x)).sum())} non-finite of {x.numel()} values'
           for name, x in inputs.items() if not torch.isfinite(x).all()]
    return '; '.join(bad) + '.' if bad else 'All inputs are finite: their sizes overflow; lower the learning rate.'


@reject_unknown_kwargs
class GaussianNLL(_UncertaintyLoss):
    __doc__ = f'{gaussian_nll.__doc__}\n\n{_UncertaintyLoss.__doc__}'

    def term(self, error, gt, log_var, frozen_error):
        return gaussian_nll(error, log_var)


@reject_unknown_kwargs
class EU(_UncertaintyLoss):
    __doc__ = f'{eu.__doc__}\n\n{_UncertaintyLoss.__doc__}'

    def term(self, error, gt, log_var, frozen_error):
        return eu(error, log_var)


@reject_unknown_kwargs
class ESU(_UncertaintyLoss):
    __doc__ = f'{esu.__doc__}\n\n{_UncertaintyLoss.__doc__}'

    def term(self, error, gt, log_var, frozen_error):
        return esu(error, log_var)


@reject_unknown_kwargs
class UDL(_UncertaintyLoss):
    """Uncertainty-driven L1 of step 2: `(s - min(s) + offset) * |e|`, `s` from the frozen network of step 1.

    Other weights take the place of `s - min(s)` for comparison: `scaling(m - min(m))`, `m` the map of `source`. See
    udl_plugin/losses/weights.py, which also says what of it is the paper's.

    Args:
        offset (float): 1 as in the authors' released code, 0 as in the paper.
        source (str): What weighs: `log_var`; `error`, the frozen network's absolute error; `gradient`, that of the
            ground truth.
        scaling (str): `linear`, `log`, `exp` (of log_var only), `sqrt` or `minmax`.
        loss_weight, reduction, img_range: as in the other losses.

    Raises:
        UserError: an unknown option, `reduction`, `source` or `scaling`, or a pair of these that overflows.
    """

    trains_log_var = False

    def __init__(self, loss_weight=1.0, reduction='mean', img_range=255.0, offset=1.0, source='log_var',
                 scaling='linear'):
        super().__init__(loss_weight, reduction, img_range)
        for key, value, known in (('source', source, SOURCES), ('scaling', scaling, SCALINGS)):
            if value not in known:
                raise UserError(f"type: UDL: {key} is '{value}'{did_you_mean(value, known)}, not one of "
                                 f"{', '.join(known)}.")
        if scaling == 'exp' and not SOURCES[source].is_log:
            raise UserError(f'type: UDL: scaling: exp is for source: log_var; of source: {source}, which goes up to '
                             '255, it overflows. Write another one.')
        self.offset, self.source, self.scaling = offset, source, scaling
        self.required_outputs = SOURCES[source].required_outputs

    def term(self, error, gt, log_var, frozen_error):
        source_map = SOURCES[self.source].weight_map(gt, log_var, frozen_error)
        return udl(error, source_map, self.offset, self.scaling)
