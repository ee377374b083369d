"""Engines for many GPUs."""
from __future__ import annotations

from typing import Any

from mmengine._strategy import FSDPStrategy
from mmengine.registry import STRATEGIES
from torch.distributed.fsdp import FullyShardedDataParallel


@STRATEGIES.register_module()
class ResumableFSDPStrategy(FSDPStrategy):
    """mmengine's `FSDPStrategy` with the same options, able to resume.

    mmengine 0.10.7 and onedl-mmengine 0.10.12 pass the optimizer's state in the argument order of torch 2.0.
    """

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        optimizer = self.optim_wrapper.optimizer
        self.optim_wrapper.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=optimizer, optim_state_dict=state_dict))
