"""Uncertainty-driven training (UDL, NeurIPS 2021) of super-resolution networks, as a plugin of BasicSR."""
from udl_plugin.plugin import install_import_hook

__version__ = '0.1.0'

install_import_hook()  # so that basicsr can be imported after us without the start-up line, too
