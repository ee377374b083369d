"""One optimizer step: forward, losses, backward, gradient clipping, update. It logs, saves and validates nothing."""
from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

USUAL_SCALE = 1024  # of the gradients under fp16: the scaler starts far above, and overflows are its way down


class StepResult(NamedTuple):
    """What one step did.

    Attributes:
        losses: Mean over the parts of the batch, by name, detached.
        finite: False: on some rank a loss or gradient was not finite, and nothing was changed.
        finite_here: The same for this rank.
        grad_norm: L2 norm of all gradients before clipping; None without `grad_clip`.
    """

    losses: dict[str, Tensor]
    finite: bool
    finite_here: bool
    grad_norm: Tensor | None


class TrainStep:
    """Trains a network on one batch, which may pass through it in several parts.

    A step with a loss or gradient that is not finite changes neither weights, optimizer, EMA nor running statistics.

    Args:
        net: The trained network, as `compute_losses` runs it.
        compute_losses: `compute_losses(**part)` runs the network on a part of a batch and returns its weighted losses.
        optimizer: Of the network's parameters.
        scaler: Of the gradients; enabled under fp16.
        update_average: Updates the EMA, called after each update of the weights; None without EMA.
        all_agree: Whether a condition of this rank holds on all ranks.
        accumulate: Number of equal parts in which a batch passes through the network.
        grad_clip: Upper limit of the gradients' L2 norm, applied after AMP's scale is taken out.

    Attributes:
        is_updating: Whether an error ended the last step within the update; before it, an error changes nothing.
    """

    def __init__(self, net: nn.Module, compute_losses: Callable[..., dict[str, Tensor]],
                 optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
                 update_average: Callable[[], None] | None = None, all_agree: Callable[[bool], bool] = bool,
                 accumulate: int = 1, grad_clip: float | None = None):
        self.net, self.compute_losses = net, compute_losses
        self.optimizer, self.scaler, self.update_average = optimizer, scaler, update_average
        self.all_agree, self.accumulate, self.grad_clip = all_agree, accumulate, grad_clip
        self.is_updating = False

    def __call__(self, batch: dict[str, Tensor]) -> StepResult:
        """
        Args:
            batch: By name, each `(N, C, H, W)`; N is a multiple of `accumulate`.
        """
        statistics = [(buffer, buffer.clone()) for buffer in self._running_statistics()]
        finite = False
        try:
            losses = self._backward(batch)
            finite_here, grad_norm = self._is_finite(losses), None
            finite = self.all_agree(finite_here)
            if finite:
                self.is_updating = True
                grad_norm = self._clip()
                finite_here = finite = self._update()
                self.is_updating = False
        finally:
            if not finite:
                for buffer, value in statistics:
                    buffer.copy_(value)
        return StepResult(losses, finite, finite_here, grad_norm)

    def _backward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accumulates the gradients of the batch; returns its losses."""
        self.optimizer.zero_grad()
        parts = [dict(zip(batch, part)) for part in zip(*(tensor.chunk(self.accumulate) for tensor in batch.values()))]
        means: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            # under DistributedDataParallel, gradients are exchanged once, with the last part
            if number < len(parts) and isinstance(self.net, nn.parallel.DistributedDataParallel):
                exchange: Any = self.net.no_sync()
            else:
                exchange = contextlib.nullcontext()
            with exchange:
                losses = self.compute_losses(**part)
                total: Any = sum(losses.values())
                self.scaler.scale(total / len(parts)).backward()
            for name, loss in losses.items():
                means[name] = means.get(name, 0) + loss.detach() / len(parts)
        return means

    def _is_finite(self, losses: dict[str, Tensor]) -> bool:
        """Whether losses and gradients are finite; under fp16 the scaler judges the gradients."""
        values = list(losses.values())
        if not self.scaler.is_enabled():
            values += [torch.linalg.vector_norm(parameter.grad, math.inf) for parameter in self._parameters()
                       if parameter.grad is not None]
        return bool(torch.stack([value.float() for value in values]).isfinite().all())

    def _clip(self) -> Tensor | None:
        if self.grad_clip is None:
            return None
        self.scaler.unscale_(self.optimizer)
        return nn.utils.clip_grad_norm_(self._parameters(), self.grad_clip)

    def _update(self) -> bool:
        """Updates weights and EMA. Returns False if gradients overflowed though fp16's scale is a usual one already."""
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        overflowed = self.scaler.get_scale() < scale  # then the scaler left the weights as they were
        if self.update_average and not overflowed:
            self.update_average()
        return not (overflowed and self.scaler.get_scale() < USUAL_SCALE)

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group['params']]

    def _running_statistics(self) -> list[Tensor]:
        """Buffers that a forward pass changes, those of batch normalization; most networks have none."""
        return [buffer for module in self.net.modules()
                if module.training and isinstance(module, nn.modules.batchnorm._NormBase)
                for buffer in module.buffers(recurse=False)]
