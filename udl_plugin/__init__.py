"""Uncertainty-driven training (UDL, NeurIPS 2021) of super-resolution networks, as a plugin of BasicSR.

    import udl_plugin
    result = udl_plugin.load('net_g_latest.pth').upscale('photo.png')
    result.image, result.expected_error

What the package exports is imported on first use, so that importing the package takes milliseconds.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from udl_plugin.plugin import install_import_hook

if TYPE_CHECKING:
    from udl_plugin.errors import UserError
    from udl_plugin.inference.upscaler import Upscaler, UpscaleResult, from_pretrained, load
    from udl_plugin.plugin import register

__version__ = '0.2.0'
__all__ = ['UpscaleResult', 'Upscaler', 'UserError', '__version__', 'from_pretrained', 'load', 'register']

_MODULES = {'UpscaleResult': 'inference.upscaler', 'Upscaler': 'inference.upscaler', 'load': 'inference.upscaler',
            'from_pretrained': 'inference.upscaler', 'UserError': 'errors', 'register': 'plugin'}

install_import_hook()  # so that basicsr can be imported after us even without the start-up line


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
