"""A race in MKL, the vector math library of PyTorch's CPU builds: https://github.com/pytorch/pytorch/issues/188792

MKL chooses the code of a function (`exp`, `log`, `sqrt`) during its first call. If several threads make this call
together, as for the first loss of a training, one of them may run code of low accuracy (relative error 1.5e-4), once.
We saw that in 2 of 60 trainings: a resumed training then does not end with the same weights.
"""
from __future__ import annotations

import torch


def warm_up() -> None:
    """Calls the functions that losses and optimizers use once, in one thread: one element is too few for more."""
    for function in (torch.exp, torch.log, torch.sqrt):
        function(torch.ones(1))
