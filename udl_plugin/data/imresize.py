"""Shim: moved to `udl_plugin.utils.imresize`."""
from udl_plugin.utils.imresize import *  # noqa: F403
