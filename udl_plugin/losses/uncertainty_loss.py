"""The losses of 'Uncertainty-Driven Loss for Single Image Super-Resolution' (Ning et al., NeurIPS 2021).

The functions take the error `target - pred` in 8-bit levels and the log-variance `s`, both `(N, C, H, W)`, and return
the loss of each pixel. The modules take images in [0, 1], as in BasicSR, and reduce.

The modules scale errors to [0, 255] (`img_range`) because the variance head ends in an ELU and cannot go below -1: with
errors in [0, 1] it would saturate at -1 everywhere and UDL would become plain L1.

BasicSR's `weighted_loss` is not used: it divides by the sum of the weights, and UDL is a plain mean.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import torch
from torch import Tensor, nn

from udl_plugin.errors import UserError, did_you_mean, reject_unknown_kwargs
from udl_plugin.losses.build import build_loss, describe_loss
from udl_plugin.losses.weights import SCALINGS, SOURCES, udl_weight


def gaussian_nll(error: Tensor, log_var: Tensor) -> Tensor:
    """Gaussian negative log-likelihood: `exp(-s) * e^2 / 2 + s / 2`. Minimal at `s = ln E[e^2]`."""
    return (torch.exp(-log_var) * error**2 + log_var) / 2


def eu(error: Tensor, log_var: Tensor) -> Tensor:
    """Estimating uncertainty, the Laplace form: `exp(-s) * |e| + s`. Minimal at `s = ln E|e|`."""
    return torch.exp(-log_var) * error.abs() + log_var


def esu(error: Tensor, log_var: Tensor) -> Tensor:
    """Estimating sparse uncertainty, EU with Jeffreys' prior: `exp(-s) * |e| + 2 s`. Minimal at `s = ln(E|e| / 2)`."""
    return torch.exp(-log_var) * error.abs() + 2 * log_var


def udl(error: Tensor, source_map: Tensor, offset: float = 1.0, scaling: str = 'linear') -> Tensor:
    """Uncertainty-driven L1: `w * |e|` with `w = udl_weight(source_map, offset, scaling)`; the paper's map is `s`."""
    return udl_weight(source_map, offset, scaling) * error.abs()


class _UncertaintyLoss(nn.Module):
    """Base of the losses: scales images, calls `term`, reduces, multiplies by `loss_weight`.

    Args:
        loss_weight: Factor on the result.
        reduction: `mean` over all pixels, channels and images, `sum`, or `none` for a map `(N, C, H, W)`.
        img_range: Images in [0, 1] are scaled to [0, img_range]. Keep 255 (see the top of the module). To bring the
            loss to the size of BasicSR's `L1Loss`, for instance beside a perceptual loss, set `loss_weight: 0.00392`.

    Raises:
        UserError: an unknown option or `reduction`.
    """

    required_outputs: tuple[str, ...] = ('log_var',)  # of the network, beside the SR image: keywords of `forward`
    trains_log_var = True  # gradients reach the variance head
    head_loss: str | None = None  # loss that this trains the head with, which gives maps their unit; None: itself
    function: Callable[[Tensor, Tensor], Tensor]  # (error, log_var) -> loss of each pixel
    formula = ''  # of `function`, for the log

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean', img_range: float = 255.0):
        super().__init__()
        if reduction not in ('none', 'mean', 'sum'):
            raise UserError(f"type: {type(self).__name__}: reduction is '{reduction}', not one of none, mean, sum.")
        self.loss_weight = loss_weight
        self.reduction = reduction
        self.img_range = img_range

    def term(self, error: Tensor, target: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
        """Returns the loss of each pixel. Error and images are in 8-bit levels."""
        return self.function(error, outputs['log_var'])

    def forward(self, pred: Tensor, target: Tensor, log_var: Tensor | None = None, **outputs: Tensor) -> Tensor:
        """
        Args:
            pred: SR image `(N, C, H, W)` in [0, 1].
            target: Ground truth, same shape and range.
            log_var: Log of the error's scale in 8-bit levels, same shape.
            outputs: Other `required_outputs`, images of the same shape and range.

        Raises:
            ValueError: a required output is missing, or the shapes differ.
        """
        name = type(self).__name__
        if log_var is not None:
            outputs['log_var'] = log_var
        missing = [required for required in self.required_outputs if required not in outputs]
        if missing:
            raise ValueError(f'{name} requires {missing[0]}: call the network with return_{missing[0]}=True '
                             '(model_type: UDLModel does), and use one that supports it, such as EDSRTwo.')
        inputs = {'pred': pred, 'target': target, **{required: outputs[required] for required in self.required_outputs}}
        if len({tensor.shape for tensor in inputs.values()}) > 1:
            raise ValueError(f'{name} requires tensors of one shape, got '
                             + ', '.join(f'{key} {tuple(tensor.shape)}' for key, tensor in inputs.items()) + '.')
        levels = self._to_levels(inputs)
        loss = self.term((target - pred) * self.img_range, levels['target'], levels)
        if self.reduction != 'none':
            loss = loss.mean() if self.reduction == 'mean' else loss.sum()
        return self.loss_weight * loss

    def _to_levels(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scales images to 8-bit levels; the log-variance is in that unit already."""
        return {key: tensor if key == 'log_var' else tensor * self.img_range for key, tensor in tensors.items()}


@reject_unknown_kwargs
class GaussianNLL(_UncertaintyLoss):
    """Gaussian negative log-likelihood, `gaussian_nll`. Options: see `_UncertaintyLoss`."""

    function = staticmethod(gaussian_nll)
    formula = '(exp(-s) e^2 + s) / 2'


@reject_unknown_kwargs
class EU(_UncertaintyLoss):
    """Estimating uncertainty, `eu`: a baseline for step 1. Options: see `_UncertaintyLoss`."""

    function = staticmethod(eu)
    formula = 'exp(-s) |e| + s'


@reject_unknown_kwargs
class ESU(_UncertaintyLoss):
    """Estimating sparse uncertainty, `esu`: the paper's step 1. Options: see `_UncertaintyLoss`."""

    function = staticmethod(esu)
    formula = 'exp(-s) |e| + 2 s'


@reject_unknown_kwargs
class UDL(_UncertaintyLoss):
    """Uncertainty-driven L1 of step 2: `(s - min(s) + offset) * |e|`, `s` from the frozen step-1 network.

    For comparison, other weights may replace `s - min(s)`: `scaling(m - min(m))` with the map `m` of `source`. See
    udl_plugin/losses/weights.py, also for which of them are the paper's.

    Args:
        loss_weight, reduction, img_range: See `_UncertaintyLoss`.
        offset: 1 as in the authors' released code, 0 as in the paper.
        source: Map that gives the weights: `log_var`; `error`, the frozen network's absolute error; `gradient`, the
            gradient magnitude of the ground truth; or of another network, `train.teacher`: `teacher_error`, its
            absolute error, or `teacher_residual`, what it adds to bicubic upsampling.
        scaling: `linear`, `log`, `exp` (of log_var only), `sqrt`, `minmax`, or `none` for plain L1.
        criterion: The loss of each pixel that is weighted, in place of `|e|`: options of a registered loss with
            `reduction: none`. It is called with SR image and ground truth in 8-bit levels.

    Raises:
        UserError: a wrong option, `reduction`, `source`, `scaling` or `criterion`, or a pair of these that overflows.
    """

    trains_log_var = False

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean', img_range: float = 255.0,
                 offset: float = 1.0, source: str = 'log_var', scaling: str = 'linear',
                 criterion: Mapping[str, Any] | None = None):
        super().__init__(loss_weight, reduction, img_range)
        for key, value, known in (('source', source, list(SOURCES)), ('scaling', scaling, list(SCALINGS))):
            if value not in known:
                raise UserError(f"type: {type(self).__name__}: {key} is '{value}'{did_you_mean(value, known)}, not one "
                                f"of {', '.join(known)}.")
        if scaling == 'exp' and not SOURCES[source].is_log:
            raise UserError(f'type: {type(self).__name__}: scaling: exp requires source: log_var; with source: '
                            f'{source}, which reaches 255, it overflows. Use another scaling.')
        self.offset, self.source, self.scaling = offset, source, scaling
        self.required_outputs = SOURCES[source].required_outputs
        self.criterion = None if criterion is None else _build_criterion(criterion, f'type: {type(self).__name__}: ')

    def weight(self, target: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
        """Returns the weight of each pixel, without gradient."""
        return udl_weight(SOURCES[self.source].weight_map(target, outputs), self.offset, self.scaling)

    @torch.no_grad()
    def pixel_weights(self, pred: Tensor, target: Tensor, **outputs: Tensor) -> Tensor:
        """Returns the weights `(N, C, H, W)` that `forward` multiplies with, given the same arguments."""
        levels = self._to_levels({'target': target, **outputs})
        return self.weight(levels['target'], levels)

    @property
    def formula(self) -> str:  # type: ignore[override]
        return f'w {"|e|" if self.criterion is None else type(self.criterion).__name__}'

    @property
    def weight_formula(self) -> str:
        """What the weight `w` of a pixel is, for the log."""
        if self.scaling == 'none':
            return f'{self.offset:g}'
        name = 's' if self.source == 'log_var' else self.source
        scaling = '' if self.scaling == 'linear' else f'scaling {self.scaling} of '
        return f'{self.offset:g} + {scaling}{name} - min({name})'

    def term(self, error: Tensor, target: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
        loss = error.abs() if self.criterion is None else self.criterion(target - error, target)
        if getattr(loss, 'shape', None) != error.shape:
            raise UserError(f'type: {type(self).__name__}: criterion: type: {type(self.criterion).__name__} returns '
                            f'{describe_loss(loss)}, not the loss of each pixel, {tuple(error.shape)}.')
        return self.weight(target, outputs) * loss


@reject_unknown_kwargs
class JointUDL(UDL):
    """One run in place of two steps: `w * |e| + ESU(|e|, s)`, with gradients of `w * |e|` for the SR image alone and
    of ESU for the log-variance `s` alone. The weights `w` are UDL's, from the `s` of the moment.

    For a network with a variance head and `detach_features: true`, so that the head does not shape the features either.
    The map then describes the errors of this network, while a map of two steps describes step 1's.

    Args:
        loss_weight, reduction, img_range: See `_UncertaintyLoss`.
        offset, source, scaling, criterion: See `UDL`. The source `error` is the network's own. `scaling: none` is plain
            L1, with a map.
        warmup: Iterations with weights of 1, in which the head learns first.
        beta_start, beta_end: If given, the weights are `exp((beta - 1) * s)` instead, with `beta` from the one to the
            other, linearly over the training (beta-NLL: Seitzer et al., ICLR 2022). 0 is the weight of a likelihood,
            1 is plain L1, more emphasises uncertain pixels, as UDL does.

    Raises:
        UserError: see `UDL`; or only one of `beta_start` and `beta_end`, or both beside other options of weights.
    """

    trains_log_var = True
    head_loss = 'ESU'
    progress_in_tensors = True  # a CUDA graph sees them change, and would keep numbers as they were when captured
    warms_up: Tensor
    exponent: Tensor

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean', img_range: float = 255.0,
                 offset: float = 1.0, source: str = 'log_var', scaling: str = 'linear',
                 criterion: Mapping[str, Any] | None = None, warmup: int = 500,
                 beta_start: float | None = None, beta_end: float | None = None):
        super().__init__(loss_weight, reduction, img_range, offset, source, scaling, criterion)
        if (beta_start is None) != (beta_end is None):
            raise UserError('type: JointUDL: beta_start and beta_end: set both, or none.')
        if beta_start is not None and (offset, source, scaling) != (1.0, 'log_var', 'linear'):
            raise UserError('type: JointUDL: beta_start and beta_end replace offset, source and scaling; delete those.')
        others = [name for name in self.required_outputs if name not in ('log_var', 'frozen_sr')]
        self.required_outputs = ('log_var', *others)
        self.warmup, self.beta_start, self.beta_end = warmup, beta_start, beta_end
        self.register_buffer('warms_up', torch.tensor(True), persistent=False)
        self.register_buffer('exponent', torch.tensor(0.0), persistent=False)
        self.set_progress(1, 1)

    def set_progress(self, iteration: int, total_iter: int) -> None:
        """Called by the model before each iteration, which counts from 1 to `total_iter`."""
        self.warms_up.fill_(iteration <= self.warmup)
        if self.beta_start is not None and self.beta_end is not None:
            beta = self.beta_start + (self.beta_end - self.beta_start) * iteration / total_iter
            self.exponent.fill_(beta - 1)

    def weight(self, target: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
        if self.beta_start is None:
            weight = super().weight(target, outputs)
        else:
            weight = torch.exp(self.exponent * outputs['log_var'].detach())
        return torch.where(self.warms_up, weight.new_ones(()), weight) if self.warmup else weight

    def pixel_weights(self, pred: Tensor, target: Tensor, **outputs: Tensor) -> Tensor:
        return super().pixel_weights(pred, target, **{**outputs, 'frozen_sr': pred})

    @property
    def formula(self) -> str:  # type: ignore[override]
        return f'{super().formula} + {ESU.formula}'

    @property
    def weight_formula(self) -> str:
        weight = super().weight_formula
        if self.beta_start is not None:
            weight = f'exp((beta - 1) s), beta from {self.beta_start:g} to {self.beta_end:g}'
        return weight + (f' (1 in the first {self.warmup} iterations)' if self.warmup else '')

    def term(self, error: Tensor, target: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
        own_sr = target - error.detach()
        return super().term(error, target, {**outputs, 'frozen_sr': own_sr}) + esu(error.detach(), outputs['log_var'])


def explain_loss(loss: Any) -> list[str]:
    """What the numbers of one of these losses mean, for the log: three lines at most; none for other losses."""
    if not isinstance(loss, _UncertaintyLoss):
        return []
    factor = '' if loss.loss_weight == 1 else f'{loss.loss_weight:g} times '
    terms = f'e: error of a pixel in [0, {loss.img_range:g}]'
    if isinstance(loss, UDL):
        terms += f'; w = {loss.weight_formula}'
    if 'log_var' in loss.required_outputs:
        terms += f"; s: log of the scale of e, from {'the variance head' if loss.trains_log_var else 'step 1'}"
    lines = [f'Loss: l_pix is {factor}the {loss.reduction} of {loss.formula} ({terms}).']
    if loss.trains_log_var:
        lines.append('A negative loss is no error: s is negative where errors are small, down to its bound of -1. '
                     'A validation reports a map that has collapsed.')
    return [*lines, "See docs/loss.md for the loss, and 'Watch it' in docs/training.md for healthy values."]


def _build_criterion(options: Any, where: str) -> nn.Module:
    where = f'{where}criterion: '
    if not isinstance(options, Mapping) or options.get('reduction') != 'none':
        raise UserError(f'{where}each pixel is weighted; write a loss such as {{type: CharbonnierLoss, reduction: '
                        f'none}}, not {options}.')
    loss = build_loss(options, where)
    if getattr(loss, 'required_outputs', ()):
        raise UserError(f'{where}type: {type(loss).__name__} requires {" and ".join(loss.required_outputs)}; use a '
                        'loss of SR image and ground truth alone, such as CharbonnierLoss.')
    return loss
