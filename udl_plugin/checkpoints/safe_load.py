"""Reads checkpoints as tensors and builtin types only: nothing in a file is executed."""
from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any, Union

import torch

from udl_plugin.checkpoints.mmengine_format import (
    allow_globals,
    from_mmengine,
    is_mmengine_checkpoint,
    mmengine_globals,
)
from udl_plugin.errors import UserError

PathLike = Union[str, 'os.PathLike[str]']


def load_checkpoint(path: PathLike) -> Any:
    """Like `load_tensors_only`, but returns a checkpoint of mmengine in BasicSR's layout."""
    content = load_tensors_only(path)
    return from_mmengine(content) if is_mmengine_checkpoint(content) else content


def load_tensors_only(path: PathLike) -> Any:
    """Reads a file that `torch.save` wrote, onto the CPU.

    Raises:
        UserError: no such file, a folder, truncated, another format, or it holds more than tensors, numbers, strings
            and containers of them.
    """
    try:
        with allow_globals(mmengine_globals()):
            return torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no file '{path}' (seen from {Path.cwd()}).") from None
    except IsADirectoryError:
        raise UserError(f"'{path}' is a folder; name a file in it, such as models/net_g_latest.pth.") from None
    except Exception as err:  # for a file of another format, torch raises nearly anything
        reason = 'it has another format, or holds Python objects, which could run code' \
            if isinstance(err, pickle.UnpicklingError) else f'{type(err).__name__}: {err}'.splitlines()[0]
        raise UserError(f"'{path}' cannot be read as a checkpoint of tensors ({reason}).") from err
