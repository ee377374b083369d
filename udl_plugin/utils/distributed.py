"""What the processes of a distributed training tell each other; without one, what this process says."""
from __future__ import annotations

from typing import Any

import torch


def max_over_ranks(value: int, device: torch.device | None) -> int:
    """The largest of the ranks' values.

    Args:
        device: Where the process group exchanges tensors; None if training is not distributed.
    """
    if device is None:
        return value
    tensor = torch.tensor(value, device=device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return int(tensor)


def all_over_ranks(condition: torch.Tensor, dist: bool) -> torch.Tensor:
    """Whether a condition, `()` and bool, holds on all ranks; it stays on its device.

    Args:
        dist: Whether training is distributed.
    """
    if not dist:
        return condition
    number = condition.float()
    torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MIN)
    return number > 0


def gather_over_ranks(value: Any, opt: dict[str, Any]) -> list:
    """The ranks' values in order, any that pickle takes.

    Args:
        opt: Of the training, for `dist` and `world_size`.
    """
    if not opt['dist']:
        return [value]
    values = [None] * opt['world_size']
    torch.distributed.all_gather_object(values, value)
    return values
