"""Engines for many GPUs."""
from mmengine._strategy import FSDPStrategy
from mmengine.registry import STRATEGIES
from torch.distributed.fsdp import FullyShardedDataParallel


@STRATEGIES.register_module()
class ResumableFSDPStrategy(FSDPStrategy):
    """mmengine's `FSDPStrategy`, with its options, and able to resume: mmengine 0.10.7 and its fork 0.10.12 hand over
    the optimizer's state in the order of arguments of torch 2.0.
    """

    def load_optim_state_dict(self, state_dict):
        optimizer = self.optim_wrapper.optimizer
        self.optim_wrapper.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=optimizer, optim_state_dict=state_dict))
