"""Extra outputs: what a loss requires from the network beside the SR image."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from torch import Tensor

EXTRA_OUTPUTS = ('log_var', 'frozen_sr')  # in the order in which networks return them


def required_outputs_of(loss: Any) -> list[str]:
    """Returns the `EXTRA_OUTPUTS` that a loss declares as `required_outputs`; losses of BasicSR declare none."""
    return [name for name in EXTRA_OUTPUTS if name in getattr(loss, 'required_outputs', ())]


def forward_with_outputs(net: Callable[..., Any], lq: Tensor, required: Sequence[str],
                         available: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Runs a network and asks it for the required outputs that are not available yet.

    Args:
        net: A network with `forward(x, return_NAME=True)` for each output that it has to compute.
        lq: `(N, C, H, W)`.
        required: Names as from `required_outputs_of`.
        available: Outputs by name, such as `log_var` of a dataset with cached maps.

    Returns:
        The SR image and the required outputs by name, in float32, also under autocast.
    """
    missing = [name for name in required if name not in available]
    output = net(lq, **{f'return_{name}': True for name in missing})
    sr, *computed = [part.float() for part in (output if missing else [output])]
    outputs = {**available, **dict(zip(missing, computed))}
    return sr, {name: outputs[name] for name in required}
