"""Iterations skipped because a loss or gradient was not finite: counted, reported, and too many end the training."""
from __future__ import annotations

from collections.abc import Mapping
from os import path as osp
from pathlib import Path
from typing import Any, NamedTuple

import torch
from basicsr.utils import get_root_logger
from torch import Tensor

from udl_plugin.models.checkpoint_manager import atomic_torch_save, write_or_log
from udl_plugin.models.train_step import StepResult
from udl_plugin.utils.distributed import gather_over_ranks

MAX_SKIPS = 10
MAX_UNCHECKED = 100  # iterations


class _Record(NamedTuple):
    iteration: int
    paths: list[str]  # of its images
    losses: list[str]  # their names
    values: Tensor  # the losses, then `finite` and `finite_here`


class NonFiniteGuard:
    """Counts skipped iterations.

    A step on a GPU does not say at once whether it was skipped; see `TrainStep`. `record` keeps what it returned, and
    `check` waits for the GPU and reads that.

    Args:
        opt: Of the training; `train.max_skips` is how many in a row are allowed.
        at_once: Whether to check each iteration; otherwise each one in which the training logs, and 100 at the latest.

    Attributes:
        skips, skips_in_row: Skipped iterations in all, and since the last one that was not.
    """

    def __init__(self, opt: dict[str, Any], at_once: bool):
        self.opt, self.max_skips = opt, opt['train'].get('max_skips') or MAX_SKIPS
        self.check_freq = 1 if at_once else (opt.get('logger') or {}).get('print_freq') or MAX_UNCHECKED
        self.skips = self.skips_in_row = 0
        self._records: list[_Record] = []

    def record(self, iteration: int, step: StepResult, paths: list[str]) -> None:
        """Keeps the result of an iteration and the paths of its images."""
        values = [value.float() for value in (*step.losses.values(), step.finite, step.finite_here)]
        self._records.append(_Record(iteration, paths or ['unknown'], list(step.losses), torch.stack(values)))

    def is_due(self, iteration: int) -> bool:
        """Whether to check after this iteration."""
        return (len(self._records) >= MAX_UNCHECKED or iteration % self.check_freq == 0
                or self.skips_in_row > 0)  # so that the batch is at hand if too many follow

    def check(self, batch: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
        """Counts and reports the recorded iterations.

        Args:
            batch: Of the last one: `lq` and `gt`, `(N, C, H, W)`.
            inputs: Of the loss in the last one, of which it says which are not finite.

        Raises:
            FloatingPointError: too many in a row; if the last one is among them, its batch is saved next to the
                training states.
        """
        records, self._records = self._records, []
        if not records:
            return
        for record, values in zip(records, torch.stack([record.values for record in records]).tolist()):
            *losses, finite, finite_here = values
            if finite:
                self.skips_in_row = 0
                continue
            self.skips, self.skips_in_row = self.skips + 1, self.skips_in_row + 1
            is_last = record is records[-1]
            self._report(record, dict(zip(record.losses, losses)), bool(finite_here), inputs if is_last else {})
            if self.skips_in_row >= self.max_skips:
                raise FloatingPointError(self._explain(record, batch if is_last else {}))

    def _report(self, record: _Record, losses: dict[str, float], finite_here: bool,
                inputs: Mapping[str, Tensor]) -> None:
        ranks = gather_over_ranks((finite_here, record.paths, _count_nonfinite(inputs)), self.opt)
        ranks = [rank for rank in ranks if not rank[0]] or ranks  # gradients are those of all ranks
        get_root_logger().warning(
            f'Skipped iteration {record.iteration}: loss or gradients not finite: {losses}.{ranks[0][2]} '
            f'{self.skips_in_row} in a row, {self.skips} in all. Its images: '
            f'{", ".join(path for _, paths, _ in ranks for path in paths)}.')

    def _explain(self, record: _Record, batch: Mapping[str, Tensor]) -> str:
        advice = ' fp16 overflows beyond 65504: try train: amp: bf16.' if self.opt['train'].get('amp') == 'fp16' else ''
        saved = ' The checkpoints are from before.' if any(Path(self.opt['path']['models']).glob('net_g_*.pth')) else ''
        found = ''
        if batch:
            name = f'not_finite_{record.iteration}_{self.opt["rank"]}.pth'
            path = osp.join(self.opt['path']['training_states'], name)
            write_or_log(atomic_torch_save, path, {'iter': record.iteration, 'paths': record.paths,
                                                   **{name: value.cpu() for name, value in batch.items()}})
            found = f" Its batch is in '{path}' (torch.load returns lq, gt and paths)."
        return (f'{self.max_skips} iterations in a row had a loss or gradients that are not finite, the last one '
                f'{record.iteration}.{found}{saved} Try a lower lr; train: max_skips allows more.{advice}')


def _count_nonfinite(tensors: Mapping[str, Tensor]) -> str:
    counts = {name: int((~tensor.isfinite()).sum()) for name, tensor in tensors.items()}
    return ''.join(f' {name} has {count} non-finite of {tensors[name].numel()} values.'
                   for name, count in counts.items() if count)
