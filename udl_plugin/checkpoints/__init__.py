"""Checkpoints: safe reading, matching with a network, and export."""
import udl_plugin.archs  # noqa: F401 (registers our classes, whose modules import those of this package)
