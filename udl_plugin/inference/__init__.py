"""Use of trained networks: upscaling, pictures of uncertainty maps, and cost."""
import udl_plugin.archs  # noqa: F401 (registers our classes, whose modules import those of this package)
