"""Uncertainty-driven training (UDL, NeurIPS 2021) of super-resolution networks, as a plugin of BasicSR.

See `udl_plugin.autoload` for how BasicSR finds us and `udl_plugin.register` for the names it finds.
"""

__version__ = '0.1.0'
