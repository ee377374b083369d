"""What a network returns: its SR image, and the extra outputs that a loss requires beside it."""
from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import torch
from torch import Tensor

from udl_plugin.errors import UserError

SR_KEYS = ('sr', 'out', 'output', 'pred')  # of the SR image, where a network returns a dict
TEACHER_OUTPUTS = ('teacher_sr', 'bicubic')  # of `train.teacher`, not of the trained network
EXTRA_OUTPUTS = ('log_var', 'frozen_sr', *TEACHER_OUTPUTS)  # networks return them in this order


def get_sr_image(output: Any) -> Tensor:
    """Returns the SR image `(N, C, H, W)` in what a base network returned.

    Args:
        output: The image; or a tuple, list or dict with it, such as with features for a loss in training. Of a dict,
            the image is under the first of `SR_KEYS`. Otherwise it is the first `(N, C, H, W)` with C of 3 or 1.

    Raises:
        UserError: there is no image in it.
    """
    if torch.is_tensor(output):
        return output
    parts: list[Any] = []
    if isinstance(output, Mapping):
        parts = [*(output[key] for key in SR_KEYS if key in output), *output.values()]
    elif isinstance(output, (tuple, list)):
        parts = list(output)
    for part in parts:
        if torch.is_tensor(part) and part.ndim == 4 and part.shape[1] in (1, 3):
            return part
    raise UserError(f'the network returns a {type(output).__name__} without an image (N, C, H, W) of 3 channels or 1. '
                    f'Return the SR image first, or in a dict under {SR_KEYS[0]}.')


def required_outputs_of(loss: Any) -> list[str]:
    """Returns the `EXTRA_OUTPUTS` that a loss declares as `required_outputs`; losses of BasicSR declare none."""
    return [name for name in EXTRA_OUTPUTS if name in getattr(loss, 'required_outputs', ())]


def provides_output(network: Any, name: str) -> bool:
    """Whether a network, or its class, returns one of `EXTRA_OUTPUTS` on request: `forward(x, return_NAME=True)`."""
    return f'return_{name}' in inspect.signature(network.forward).parameters


def forward_with_outputs(net: Callable[..., Any], lq: Tensor, required: Sequence[str],
                         available: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Runs a network and asks it for the required outputs that are not available yet.

    Args:
        net: A network with `forward(x, return_NAME=True)` for each output that it has to compute. With none to compute,
            any network that `get_sr_image` takes.
        lq: `(N, C, H, W)`.
        required: Names as from `required_outputs_of`.
        available: Outputs by name, such as `log_var` of a dataset with cached maps.

    Returns:
        The SR image and the required outputs by name, in float32, also under autocast.
    """
    missing = [name for name in required if name not in available]
    output = net(lq, **{f'return_{name}': True for name in missing})
    sr, *computed = [part.float() for part in (output if missing else [get_sr_image(output)])]
    outputs = {**available, **dict(zip(missing, computed))}
    return sr, {name: outputs[name] for name in required}
