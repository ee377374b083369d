"""What a training logs beside its losses: error, uncertainty map and weights of the last batch."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from udl_plugin.models.validation import map_spread

NEAR_BOUND = -0.99  # the ELU that ends the variance head stays above -1


@torch.no_grad()
def get_training_scalars(inputs: Mapping[str, Tensor], loss: Any) -> dict[str, float]:
    """Describes what a loss got. Waits for the GPU, so it is for iterations that log.

    Args:
        inputs: `pred` and `target`, images in [0, 1], and the outputs that the loss requires, all `(N, C, H, W)`.
        loss: One with a method `pixel_weights`, such as UDL's, or any other.

    Returns:
        By names that TensorBoard groups at the slash: `error/mean`, the mean absolute error in 8-bit levels. With
        `log_var`: `map/mean`; `map/spread`, see `map_spread`; `map/at_bound`, the share of values below -0.99. With
        `pixel_weights`: `weight/min` and `weight/max`. Empty without `pred` and `target`.
    """
    if not {'pred', 'target'} <= inputs.keys():  # of a model with a `compute_losses` of its own
        return {}
    found = {'error/mean': 255 * (inputs['target'] - inputs['pred']).abs().mean()}
    log_var = inputs.get('log_var')
    if log_var is not None:
        found.update({'map/mean': log_var.mean(), 'map/spread': torch.tensor(map_spread(log_var)),
                      'map/at_bound': (log_var < NEAR_BOUND).float().mean()})
    if hasattr(loss, 'pixel_weights'):
        weights = loss.pixel_weights(**inputs)
        found.update({'weight/min': weights.min(), 'weight/max': weights.max()})
    return {name: float(value) for name, value in found.items()}
