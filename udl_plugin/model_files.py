"""Shim: moved to `udl_plugin.checkpoints.network_file`."""
from udl_plugin.checkpoints.network_file import load_network_file as read_model  # noqa: F401
