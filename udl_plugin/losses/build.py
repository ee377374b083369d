"""From options to a loss: class lookup and construction."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from udl_plugin.errors import UserError, check_kwargs, describe_exception, lookup_class


def describe_loss(value: Any) -> str:
    """What a loss returned instead of what it should, for a message."""
    return f'a tensor of shape {tuple(value.shape)}' if isinstance(value, Tensor) else f'a {type(value).__name__}'


def get_head_loss(loss: Any) -> str | None:
    """Name of the loss that trains the variance head, which gives the map its unit; None if `loss` trains none."""
    if not getattr(loss, 'trains_log_var', False):
        return None
    return getattr(loss, 'head_loss', None) or type(loss).__name__


def build_loss(loss_opt: Mapping[str, Any], where: str = '') -> Any:
    """Builds a loss of BasicSR's registry: one of ours, which knows its `required_outputs`, BasicSR's or a user's.

    Args:
        loss_opt: With a `type`.
        where: Its key, for messages, such as `pixel_loss: `.

    Raises:
        UserError: an unknown `type`, one that does not accept these options, or one that is not a `torch.nn.Module`.
    """
    from basicsr.utils.registry import LOSS_REGISTRY  # here: the losses are imported while BasicSR registers them
    options = dict(loss_opt)
    cls = lookup_class(LOSS_REGISTRY, options.pop('type', None), f'{where}type: ')
    check_kwargs(cls, options, where)
    try:
        loss = cls(**options)
    except UserError as err:
        raise UserError(f'{where}{err}') from err
    except Exception as err:  # losses of BasicSR and of users fail in their own ways
        raise UserError(f'{where}type: {cls.__name__}: cannot be built with these options '
                        f'({describe_exception(err)}): {options}.') from err
    if not isinstance(loss, nn.Module):
        raise UserError(f'{where}type: {cls.__name__}: must be a class of torch.nn.Module, as losses of BasicSR are.')
    return loss
