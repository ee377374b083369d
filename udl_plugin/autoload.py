"""Shim of the start-up line that earlier versions installed: see `udl_plugin.plugin`."""
from udl_plugin.plugin import install_import_hook as install  # noqa: F401
