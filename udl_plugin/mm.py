"""Shim: moved to `udl_plugin.integrations.mmengine`."""
from udl_plugin.integrations.mmengine import *  # noqa: F403
