"""One optimizer step: forward, losses, backward, gradient clipping, update. It logs, saves and validates nothing.

On a GPU nothing here asks the device for a value, because Python would wait for the answer, and the GPU afterwards for
Python. Whether the step is finite stays a tensor, by which a fused optimizer, the EMA and running statistics change or
do not. `CapturedStep` runs the same code as one CUDA graph.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

USUAL_SCALE = 1024  # of the gradients under fp16: the scaler starts far above, and overflows are its way down


class StepResult(NamedTuple):
    """What one step did. All tensors are of shape () and on the device of the training.

    Attributes:
        losses: Mean over the parts of the batch, by name, detached.
        finite: False: on some rank a loss or gradient was not finite, and nothing was changed.
        finite_here: Whether the losses of this rank are finite.
        grad_norm: L2 norm of all gradients, before clipping.
    """

    losses: dict[str, Tensor]
    finite: Tensor
    finite_here: Tensor
    grad_norm: Tensor


class TrainStep:
    """Trains a network on one batch, which may pass through it in several parts.

    A step with a loss or gradient that is not finite changes neither weights, optimizer, EMA nor running statistics.

    Args:
        net: The trained network, as `compute_losses` runs it.
        compute_losses: `compute_losses(**part)` runs the network on a part of a batch and returns its weighted losses.
        optimizer: Of the network's parameters.
        scaler: Of the gradients; enabled under fp16.
        update_average: Updates the EMA where its argument, `()` and bool, is True; None without EMA.
        all_agree: Whether a condition of this rank, `()` and bool, holds on all ranks.
        accumulate: Number of equal parts in which a batch passes through the network.
        grad_clip: Upper limit of the gradients' L2 norm, applied after AMP's scale is taken out.

    Attributes:
        is_updating: Whether an error ended the last step within the update; before it, an error changes nothing.
    """

    def __init__(self, net: nn.Module, compute_losses: Callable[..., dict[str, Tensor]],
                 optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
                 update_average: Callable[[Tensor], None] | None = None,
                 all_agree: Callable[[Tensor], Tensor] = lambda condition: condition,
                 accumulate: int = 1, grad_clip: float | None = None):
        self.net, self.compute_losses = net, compute_losses
        self.optimizer, self.scaler, self.update_average = optimizer, scaler, update_average
        self.all_agree, self.accumulate, self.grad_clip = all_agree, accumulate, grad_clip
        self.is_updating = False

    @property
    def stays_on_device(self) -> bool:
        """Whether the optimizer skips a step by itself, as fused ones do; otherwise Python waits for the result."""
        return getattr(self.optimizer, '_step_supports_amp_scaling', False)

    def __call__(self, batch: dict[str, Tensor]) -> StepResult:
        """
        Args:
            batch: By name, each `(N, C, H, W)`; N is a multiple of `accumulate`.
        """
        statistics = [(buffer, buffer.clone()) for buffer in self._running_statistics()]
        try:
            losses = self._backward(batch)
            finite_here = torch.stack([loss.float() for loss in losses.values()]).isfinite().all()
            grad_norm = self._get_norm_and_clip()
            finite_losses = self.all_agree(finite_here)
            applied = finite_losses & grad_norm.isfinite()
            self.is_updating = True
            self._update(applied)
            finite = applied | (finite_losses & self._scale_is_on_its_way())
            self.is_updating = False
        except BaseException:
            for buffer, value in statistics:
                buffer.copy_(value)
            raise
        for buffer, value in statistics:
            buffer.copy_(torch.where(applied, buffer, value))
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

    def _get_norm_and_clip(self) -> Tensor:
        """Takes out the scale of fp16 and limits the norm of the gradients; returns what it was before."""
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group['params']]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if self.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.grad_clip, norm)
        return norm

    def _update(self, applied: Tensor) -> None:
        """Updates weights and EMA where `applied`, and the scale of fp16."""
        if self.stays_on_device:
            self.optimizer.found_inf = (~applied).float()  # type: ignore[attr-defined] # as GradScaler does
            self.optimizer.step()
            del self.optimizer.found_inf  # type: ignore[attr-defined]
        elif applied:
            self.optimizer.step()
        self.scaler.update()
        if self.update_average:
            self.update_average(applied)

    def _scale_is_on_its_way(self) -> Tensor | bool:
        """Whether fp16's scale is above a usual one: then an overflow lowers it, and nothing is wrong."""
        if not self.scaler.is_enabled():
            return False
        one = torch.ones((), device=self.optimizer.param_groups[0]['params'][0].device)
        return self.scaler.scale(one) >= USUAL_SCALE

    def _running_statistics(self) -> list[Tensor]:
        """Buffers that a forward pass changes, those of batch normalization; most networks have none."""
        return [buffer for module in self.net.modules()
                if module.training and isinstance(module, nn.modules.batchnorm._NormBase)
                for buffer in module.buffers(recurse=False)]
