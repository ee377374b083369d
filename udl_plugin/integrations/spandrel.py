"""EDSR and DPDNN for spandrel: after `install()`, its own `ModelLoader` loads our files.

    from spandrel import ModelLoader
    from udl_plugin.integrations import spandrel as udl_spandrel

    udl_spandrel.install()
    model = ModelLoader().load_from_file('edsr_s.pth')
    sr = model(lq)  # (1, 3, H, W) in [0, 1] to (1, 3, scale * H, scale * W)

Checkpoints of plain networks and of both steps are supported; shape and scale are read from the weights. Options that
cannot be inferred (`res_scale`, `img_range`, `rgb_mean`) come from the metadata in our `.pth` files, or else are
BasicSR's defaults, with a warning. spandrel reads no metadata from `.safetensors` files; `load` does.
"""
from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from udl_plugin.archs.build import build_network
from udl_plugin.checkpoints.network_file import SHAPES, NetworkFile, identify_network, load_network_file
from udl_plugin.errors import UserError

try:
    from spandrel import MAIN_REGISTRY, Architecture, ArchRegistry, ArchSupport, ImageModelDescriptor
except ImportError as err:
    raise UserError("spandrel is not installed: pip install 'udl_plugin[spandrel]'.") from err

__all__ = ['UDLArchitecture', 'install', 'load']


class UDLArchitecture(Architecture):
    """A network of `SHAPES` as an architecture of spandrel.

    Args:
        name: Its registered name, such as `EDSR`.
    """

    def __init__(self, name: str):
        super().__init__(id=name, detect=lambda state_dict: SHAPES[name](state_dict) is not None)

    def load(self, state_dict: dict[str, Any]) -> ImageModelDescriptor:
        """Returns the descriptor of the base network in a state dict of any step."""
        file = identify_network(state_dict, getattr(state_dict, '_metadata', {}).get('', {}).get('network_g'))
        for note in file.notes:
            warnings.warn(f'{note} For spandrel, first convert the file with it to .pth: udl-convert.', stacklevel=2)
        return self.describe(file.base())

    def describe(self, file: NetworkFile) -> ImageModelDescriptor:
        """Returns the descriptor of a base network."""
        shape: Any = SHAPES[self.name](file.state_dict)
        return ImageModelDescriptor(
            build_network(file.network_g), file.state_dict, self, 'SR', tags=[f'{shape["num_feat"]}nf'],
            supports_half=False, supports_bfloat16=False, scale=shape['upscale'], input_channels=shape['num_in_ch'],
            output_channels=shape['num_out_ch'])


def load(path: str | Path) -> ImageModelDescriptor:
    """Like `ModelLoader().load_from_file(path)` for EDSR and DPDNN, with the metadata of any file format.

    Raises:
        UserError: see `load_network_file`; or the file holds another network.
    """
    file = load_network_file(path).base()
    name = file.network_g['type']
    if name not in SHAPES:
        raise UserError(f"'{path}' holds {name}, not one of {', '.join(SHAPES)}.")
    return UDLArchitecture(name).describe(file)


def install(registry: ArchRegistry | None = None) -> None:
    """Adds our architectures to a registry; by default spandrel's main one. Calling it again changes nothing."""
    supports = [ArchSupport.from_architecture(UDLArchitecture(name)) for name in SHAPES]
    (MAIN_REGISTRY if registry is None else registry).add(*supports, ignore_duplicates=True)
