"""Iterations skipped because a loss or gradient was not finite: counted, reported, and too many end the training."""
from __future__ import annotations

from os import path as osp
from pathlib import Path
from typing import Any

from basicsr.utils import get_root_logger
from torch import Tensor

from udl_plugin.models.checkpoint_manager import atomic_torch_save, write_or_log
from udl_plugin.models.train_step import StepResult
from udl_plugin.utils.distributed import gather_over_ranks

MAX_SKIPS = 10


class NonFiniteGuard:
    """Counts skipped iterations.

    Args:
        opt: Of the training; `train.max_skips` is how many in a row are allowed.

    Attributes:
        skips, skips_in_row: Skipped iterations in all, and since the last one that was not.
        cause: Which tensor a loss blamed, for the report.
    """

    def __init__(self, opt: dict[str, Any]):
        self.opt, self.max_skips = opt, opt['train'].get('max_skips') or MAX_SKIPS
        self.skips = self.skips_in_row = 0
        self.cause = ''

    def record_step(self, iteration: int, step: StepResult, losses: dict[str, float], batch: dict[str, Tensor],
                    paths: list[str]) -> None:
        """Counts a step, and reports it if it was skipped.

        Args:
            iteration: Its number.
            step: What it did.
            losses: As logged.
            batch: `lq` and `gt`, `(N, C, H, W)`.
            paths: Of its images.

        Raises:
            FloatingPointError: too many in a row; the batch is saved next to the training states.
        """
        if step.finite:
            self.skips_in_row = 0
            return
        self.skips, self.skips_in_row = self.skips + 1, self.skips_in_row + 1
        ranks = gather_over_ranks((step.finite_here, paths or ['unknown'], self.cause), self.opt)
        ranks = [rank for rank in ranks if not rank[0]] or ranks  # gradients are those of all ranks
        get_root_logger().warning(
            f'Skipped iteration {iteration}: loss or gradients not finite: {losses}.{ranks[0][2]} {self.skips_in_row} '
            f'in a row, {self.skips} in all. Its images: {", ".join(path for _, paths, _ in ranks for path in paths)}.')
        self.cause = ''
        if self.skips_in_row < self.max_skips:
            return
        path = osp.join(self.opt['path']['training_states'], f'not_finite_{iteration}_{self.opt["rank"]}.pth')
        write_or_log(atomic_torch_save, path, {'iter': iteration, 'paths': paths,
                                               **{name: value.cpu() for name, value in batch.items()}})
        advice = ' fp16 overflows beyond 65504: try train: amp: bf16.' if self.opt['train'].get('amp') == 'fp16' else ''
        saved = ' The checkpoints are from before.' if any(Path(self.opt['path']['models']).glob('net_g_*.pth')) else ''
        raise FloatingPointError(
            f'{self.max_skips} iterations in a row had a loss or gradients that are not finite, the last one '
            f"{iteration}. Its batch is in '{path}' (torch.load returns lq, gt and paths).{saved} Try a lower lr; "
            f'train: max_skips allows more.{advice}')
