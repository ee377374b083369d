"""Shim: moved to `udl_plugin.prepare.datasets`."""
from udl_plugin.prepare.datasets import *  # noqa: F403
