"""EDSR and DPDNN for spandrel, which has neither: `install()`, then its own `ModelLoader` loads our files.

    from spandrel import ModelLoader
    from udl_plugin import spandrel_archs

    spandrel_archs.install()
    model = ModelLoader().load_from_file('edsr_s.pth')
    sr = model(lq)  # (1, 3, H, W) in [0, 1] to (1, 3, scale * H, scale * W)

Files of plain networks and of both steps. Shape and scale are read from the weights. What they cannot tell
(`res_scale`, `img_range`, `rgb_mean`) comes from the metadata that our `.pth` files keep with the weights; where there
is none, upstream's defaults are taken, with a warning. Of a `.safetensors` file spandrel reads no metadata; `load`
does.
"""
import warnings
from collections import OrderedDict

from udl_plugin.archs.build import build_network
from udl_plugin.checkpoints.network_file import SHAPES, identify_network, load_network_file
from udl_plugin.errors import UserError

try:
    from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor
except ImportError as err:
    raise UserError("spandrel is not installed: pip install 'udl_plugin[spandrel]'.") from err


class OurArchitecture(Architecture):
    """One of `SHAPES`, by its name."""

    def __init__(self, name):
        super().__init__(id=name, detect=lambda state_dict: SHAPES[name](state_dict) is not None)

    def load(self, state_dict):
        """The descriptor of the plain network in a state dict of any step."""
        shape = SHAPES[self.name](state_dict)
        said = getattr(state_dict, '_metadata', {}).get('', {}).get('network_g')
        model = identify_network(state_dict, said)
        for note in model.notes:
            warnings.warn(f'{note} For spandrel, convert it with that to .pth first: udl-convert.', stacklevel=2)
        plain = model.plain()
        return ImageModelDescriptor(
            build_network(plain.network_g), plain.state_dict, self, 'SR', tags=[f'{shape["num_feat"]}nf'],
            supports_half=False, supports_bfloat16=False, scale=shape['upscale'], input_channels=shape['num_in_ch'],
            output_channels=shape['num_out_ch'])


def load(path):
    """As `ModelLoader().load_from_file(path)`, for EDSR and DPDNN, with what the file says in any form.

    Raises:
        UserError: see `load_network_file`; or the file holds another network.
    """
    model = load_network_file(path).plain()
    name = model.network_g['type']
    if name not in SHAPES:
        raise UserError(f"'{path}' holds {name}, not one of {', '.join(SHAPES)}.")
    state_dict = OrderedDict(model.state_dict)
    state_dict._metadata = {'': {'network_g': model.network_g}}
    return OurArchitecture(name).load(state_dict)


def install(registry=None):
    """Adds our architectures to spandrel's main registry, or to another; again does nothing."""
    supports = [ArchSupport.from_architecture(OurArchitecture(name)) for name in SHAPES]
    (MAIN_REGISTRY if registry is None else registry).add(*supports, ignore_duplicates=True)
