"""BasicSR models."""
from udl_plugin.plugin import register

register()  # see there

from udl_plugin.models.udl_model import UDLModel  # noqa: E402

__all__ = ['UDLModel']
