"""Shim: moved to `udl_plugin.integrations.spandrel`."""
from udl_plugin.integrations.spandrel import *  # noqa: F403
