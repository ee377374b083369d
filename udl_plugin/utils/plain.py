"""Configs as builtin types."""
from __future__ import annotations

from typing import Any


def to_builtins(value: Any) -> Any:
    """Returns a config with its dicts, lists and tuples as plain dicts and lists, for YAML, JSON and `torch.save`."""
    if isinstance(value, dict):
        return {str(key): to_builtins(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_builtins(item) for item in value]
    return value
