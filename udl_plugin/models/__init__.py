"""BasicSR models."""
from udl_plugin.register import register

register()  # also imports basicsr first, so that it does not matter which of our modules is imported first

from udl_plugin.models.udl_model import UDLModel  # noqa: E402

__all__ = ['UDLModel']
