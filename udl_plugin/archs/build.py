"""From a config to a network: class lookup, construction, and a probe of its image shapes."""
import contextlib
import inspect
import itertools
import warnings

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch.nn.modules.module import register_module_parameter_registration_hook

from udl_plugin.errors import UserError, lookup_class

PROBE_HEIGHTS = (8, 16, 56, 64, 128)  # of the input on which a network is watched; SwinIR wants multiples of its window


def build_backbone(section):
    """The plain network that a section of a yml, `{type: EDSR, ...}`, describes.

    Raises:
        UserError: no such section or type, or one that has a variance head already.
    """
    if not isinstance(section, dict) or 'type' not in section:
        raise UserError(f'backbone: is a section such as {{type: EDSR, num_in_ch: 3, num_out_ch: 3}}, not {section}.')
    cls = get_network_class(section['type'], 'backbone: ')
    if hasattr(cls, 'trains_log_var'):
        raise UserError(f'backbone: type: {section["type"]} has a variance head already; name a plain network.')
    return build_network(section)


def build_network(section):
    """The network that a section of a yml describes, as BasicSR's `build_network` does it, without its log.

    Raises:
        UserError: no such type, or options that it cannot be built with.
    """
    cls = get_network_class(section['type'])
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'torch.meshgrid')  # from BasicSR's SwinIR
            return cls(**{key: value for key, value in section.items() if key != 'type'})
    except UserError:
        raise
    except Exception as err:  # a string for a number, a size below zero: what a network makes of it
        raise UserError(f'type: {section["type"]}: cannot be built with these options ({type(err).__name__}: {err}): '
                         f'{dict(section)}.') from err


@contextlib.contextmanager
def no_larger_than(tensors, values):
    """In the block, a network of more parameters than these is not built to its end, which could fill the memory.

    Raises:
        UserError: one was begun.
    """
    left = [tensors, values]

    def count(module, name, parameter):
        if parameter is not None:
            left[0], left[1] = left[0] - 1, left[1] - parameter.numel()
            if min(left) < 0:
                raise UserError(f'it would be of more than {tensors} tensors, or {values:,} values, and is not built.')

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def get_network_class(name, where=''):
    """The class that BasicSR's registry has under `name`.

    Raises:
        UserError: none.
    """
    return lookup_class(ARCH_REGISTRY, name, f'{where}type: ')


def is_map(shape):
    """Whether it is as wide as the watched image for its height; attention has other tensors of four dimensions."""
    return shape is not None and len(shape) == 4 and shape[3] == 2 * shape[2] > 0


@torch.no_grad()
def probe_shapes(net):
    """Runs a network on a small black image, twice as wide as high, of the channels and size that it takes.

    Returns:
        tuple[tuple[int], tuple[int]]: The shapes of image and output, `(1, C, H, W)`.

    Raises:
        UserError: it takes none, or its output is no larger image.
    """
    was_training, first_error = net.training, None
    device = next(itertools.chain(net.parameters(), net.buffers()), torch.zeros(0)).device
    net.eval()
    try:
        for channels in (3, 1):
            for height in PROBE_HEIGHTS:
                lq = torch.zeros(1, channels, height, 2 * height, device=device)
                try:
                    output = shape_of_first((net(lq),))
                except Exception as err:  # a foreign network: anything can be wrong with a size
                    first_error = first_error or err
                    continue
                if output is None or len(output) != 4 or not is_map(output) or output[2] % height:
                    raise UserError(f'{type(net).__name__} makes {output} of an image {tuple(lq.shape)}, and not one '
                                     'that is larger by a whole number.')
                return tuple(lq.shape), output
    finally:
        net.train(was_training)
    raise UserError(f'{type(net).__name__} cannot be run on a small image of 3 channels or 1 '
                     f'({type(first_error).__name__}: {first_error}).') from first_error


def shape_of_first(args):
    return tuple(args[0].shape) if args and torch.is_tensor(args[0]) else None


def with_defaults(network_g):
    """`network_g` of a plain network with the defaults that it leaves out."""
    parameters = inspect.signature(get_network_class(network_g['type'])).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()
                if parameter.default is not parameter.empty}
    return {**defaults, **network_g}
