"""A variance head on any super-resolution network: where its features are found, and how they are taken out."""
import contextlib
import inspect
import itertools
import threading
import warnings
from collections import namedtuple

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from udl_plugin.archs.variance_head import VarianceHead
from udl_plugin.errors import InputError, check_option_names, did_you_mean, find_registered, refuse_unknown_options

HEAD = 'var_conv'  # the name of the head in every state dict, as the authors have it
TOLD = 12  # candidates in an error
HEIGHTS = (8, 16, 56, 64, 128)  # of the input on which a network is watched; SwinIR wants multiples of its window


@refuse_unknown_options
class WithVariance(nn.Module):
    """A network of BasicSR's registry, as it is, plus a variance head, `var_conv`, on what enters its upsampler.

    State dicts have the backbone's own names and `var_conv.*` beside them: weights of the plain network go in with
    `strict_load_g: false`, and the network's own class takes them back.

    Args:
        backbone (dict): Its section of a yml: `{type: RCAN, num_in_ch: 3, ...}`.
        features (str): The module of the backbone whose input the head takes, such as `upsample`; where it runs more
            than once, its last run. Without it the place is found by watching the backbone at work: what enters the
            first layer that enlarges (of a convolution and pixel shuffle, the convolution), or the last convolution
            where none does.

    Raises:
        InputError: an unknown option or type, a backbone that cannot run, features that cannot be found.
    """

    trains_log_var = True

    def __init__(self, backbone, features=None):
        super().__init__()
        self.backbone = build_backbone(backbone)
        place = find_features(self.backbone, features)
        self.backbone.get_submodule(place.module).register_forward_pre_hook(_hand_over)
        self.runs, self.scale = place.runs, place.scale
        self.var_conv = VarianceHead(place.num_feat, place.num_out_ch, place.upscale)

    def forward(self, x, return_log_var=False):
        """
        Args:
            x (Tensor): LR image `(N, C, H, W)`, RGB in [0, 1].
            return_log_var (bool): Also run the variance head.

        Returns:
            Tensor | tuple[Tensor]: The SR image `(N, C, upscale * H, upscale * W)`; with `return_log_var` the pair of
            it and its log-variance of the same shape: the log of the error's scale in 8-bit levels, above -1.
        """
        if not return_log_var:
            return self.backbone(x)
        with _Taken() as taken:
            sr = self.backbone(x)
        return sr, self._head(taken, x)

    def log_var(self, x):
        """The log-variance alone: of the backbone, no more is run than the head needs."""
        with _Taken(self.runs) as taken:
            self.backbone(x)
        return self._head(taken, x)

    def _head(self, taken, x):
        height, width = x.shape[2:]  # a backbone that pads its input has larger features
        return self.var_conv(taken.features)[:, :, :self.scale * height, :self.scale * width]

    def state_dict(self, *args, destination=None, prefix='', keep_vars=False):
        """As usual, but under the backbone's own names."""
        destination = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        ours = f'{prefix}backbone.'
        for name in [name for name in destination if name.startswith(prefix)]:
            value = destination.pop(name)  # all of them, so that their order stays
            destination[prefix + name[len(ours):] if name.startswith(ours) else name] = value
        return destination

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in [name for name in state_dict if name.startswith(prefix)]:
            if not name.startswith(f'{prefix}{HEAD}.'):
                state_dict[f'{prefix}backbone.{name[len(prefix):]}'] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)


def with_options_of(backbone, features=None):
    """Class decorator for a `WithVariance` or `TwoStep` of one `backbone`, a class in BasicSR's registry: takes that
    class's options, with their defaults, and `features`.

    Args:
        backbone (type): Class of the network without a variance head.
        features (str): Default of the option `features`; see `WithVariance`.
    """
    signature = inspect.signature(backbone)
    own = inspect.Parameter('features', inspect.Parameter.KEYWORD_ONLY, default=features)

    def decorate(cls):
        def __init__(self, *args, features=features, **options):
            check_option_names(cls, options)
            super(cls, self).__init__({'type': backbone.__name__, **signature.bind(*args, **options).arguments},
                                      features)

        cls.__init__ = __init__
        cls.__signature__ = signature.replace(parameters=[*signature.parameters.values(), own])
        return cls

    return decorate


def build_backbone(section):
    """The plain network that a section of a yml, `{type: EDSR, ...}`, describes.

    Raises:
        InputError: no such section or type, or one that has a variance head already.
    """
    if not isinstance(section, dict) or 'type' not in section:
        raise InputError(f'backbone: is a section such as {{type: EDSR, num_in_ch: 3, num_out_ch: 3}}, not {section}.')
    cls = arch_class(section['type'], 'backbone: ')
    if hasattr(cls, 'trains_log_var'):
        raise InputError(f'backbone: type: {section["type"]} has a variance head already; name a plain network.')
    return build(section)


def build(section):
    """The network that a section of a yml describes, as BasicSR's `build_network` does it, without its log.

    Raises:
        InputError: no such type, or options that it cannot be built with.
    """
    cls = arch_class(section['type'])
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'torch.meshgrid')  # from BasicSR's SwinIR
            return cls(**{key: value for key, value in section.items() if key != 'type'})
    except InputError:
        raise
    except Exception as err:  # a string for a number, a size below zero: what a network makes of it
        raise InputError(f'type: {section["type"]}: cannot be built with these options ({type(err).__name__}: {err}): '
                         f'{dict(section)}.') from err


@contextlib.contextmanager
def no_larger_than(tensors, values):
    """In the block, a network of more parameters than these is not built to its end, which could fill the memory.

    Raises:
        InputError: one was begun.
    """
    left = [tensors, values]

    def count(module, name, parameter):
        if parameter is not None:
            left[0], left[1] = left[0] - 1, left[1] - parameter.numel()
            if min(left) < 0:
                raise InputError(f'it would be of more than {tensors} tensors, or {values:,} values, and is not built.')

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def arch_class(name, where=''):
    """The class that BasicSR's registry has under `name`.

    Raises:
        InputError: none.
    """
    return find_registered(ARCH_REGISTRY, name, f'{where}type: ')


# ---- where the features are

# runs: of the module, in one pass; num_feat, upscale and num_out_ch of the head; scale of the network
Place = namedtuple('Place', 'module runs num_feat upscale num_out_ch scale')
Run = namedtuple('Run', 'name module input output is_leaf')  # of a module; input and output are shapes


def find_features(net, name=None):
    """Finds the features that enter the upsampler of `net`, by running it on a small black image.

    Args:
        net (nn.Module): `(N, C, H, W)` to a larger image, or one of that size, of 3 or 1 channels.
        name (str): The module whose input they are; None: see `WithVariance`.

    Raises:
        InputError: `net` cannot be run, there is nothing of that name, or what enters there is no map of features.
    """
    what = f'{type(net).__name__}: features:'
    if name is not None and not isinstance(name, str):
        raise InputError(f'{what} {name!r} is no name of a module.')
    runs, lq, output = watch(net)
    usable = {run.name: run for run in runs if _is_map(run.input) and output[2] % run.input[2] == 0}
    if name is None:
        chosen = usable.get(_entry_of_upsampler(runs))
        hint = 'the place cannot be found by itself; name the module whose input they are.'
    else:
        chosen = usable.get(name)
        hint = f"there is no '{name}'{did_you_mean(name, usable)}, or no map enters it."
    if chosen is None:
        raise InputError(f'{what} {hint} Those that run last, with the channels of their input: '
                         + ', '.join(f'{run.name} ({run.input[1]})' for run in list(usable.values())[-TOLD:]) + '.')
    return Place(chosen.name, sum(run.name == chosen.name for run in runs), chosen.input[1],
                 output[2] // chosen.input[2], output[1], output[2] // lq[2])


def _is_map(shape):
    """Whether it is as wide as the watched image for its height; attention has other tensors of four dimensions."""
    return shape is not None and len(shape) == 4 and shape[3] == 2 * shape[2] > 0


def _entry_of_upsampler(runs):
    """The name of the module whose input enters the upsampler, or None."""
    runs = [run for run in runs if run.is_leaf and _is_map(run.input) and _is_map(run.output)]
    while runs and not any(True for _ in runs[0].module.parameters()):  # the image itself may be enlarged first
        runs = runs[1:]
    height = runs[0].input[2] if runs else 0  # the largest so far
    for number, run in enumerate(runs):
        if run.input[2] > height:  # enlarged by a function, not by a module
            return run.name
        if run.output[2] > height:
            before = runs[number - 1]
            return before.name if isinstance(run.module, nn.PixelShuffle) and before.output == run.input else run.name
    convolutions = [run.name for run in runs if isinstance(run.module, nn.Conv2d)]
    return convolutions[-1] if convolutions else None


def watch(net):
    """Runs `net` on a small black image.

    Returns:
        tuple[list[Run], tuple[int], tuple[int]]: What ran, in the order in which it began; the shapes of the image and
        of its output.

    Raises:
        InputError: see `run_small`.
    """
    runs, stack, handles = [], [], []

    def enter(name):
        def hook(module, args):
            if stack:
                stack[-1]['is_leaf'] = False
            stack.append({'name': name, 'module': module, 'input': _shape(args), 'is_leaf': True})
            runs.append(stack[-1])
        return hook

    def leave(module, args, output):
        stack.pop()['output'] = _shape((output,))

    def forget(*_):
        runs.clear()
        stack.clear()

    handles.append(net.register_forward_pre_hook(forget))
    for name, module in net.named_modules():
        if name:
            handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        lq, output = run_small(net)
    finally:
        for handle in handles:
            handle.remove()
    return [Run(**run) for run in runs], lq, output


@torch.no_grad()
def run_small(net):
    """Runs a network on a small black image, twice as wide as high, of the channels and size that it takes.

    Returns:
        tuple[tuple[int], tuple[int]]: The shapes of image and output, `(1, C, H, W)`.

    Raises:
        InputError: it takes none, or its output is no larger image.
    """
    was_training, first_error = net.training, None
    device = next(itertools.chain(net.parameters(), net.buffers()), torch.zeros(0)).device
    net.eval()
    try:
        for channels in (3, 1):
            for height in HEIGHTS:
                lq = torch.zeros(1, channels, height, 2 * height, device=device)
                try:
                    output = _shape((net(lq),))
                except Exception as err:  # a foreign network: anything can be wrong with a size
                    first_error = first_error or err
                    continue
                if output is None or len(output) != 4 or not _is_map(output) or output[2] % height:
                    raise InputError(f'{type(net).__name__} makes {output} of an image {tuple(lq.shape)}, and not one '
                                     'that is larger by a whole number.')
                return tuple(lq.shape), output
    finally:
        net.train(was_training)
    raise InputError(f'{type(net).__name__} cannot be run on a small image of 3 channels or 1 '
                     f'({type(first_error).__name__}: {first_error}).') from first_error


def _shape(args):
    return tuple(args[0].shape) if args and torch.is_tensor(args[0]) else None


# ---- how they are taken out

_now = threading.local()  # `taken` in it: of the pass that this thread is in. DataParallel runs one network in many


def _hand_over(module, args):
    """The hook on the module that the features enter. A function of the module's own, so that networks with it can be
    copied, pickled and run in several threads."""
    taken = getattr(_now, 'taken', None)
    if taken is not None:
        taken.take(args[0])


class _Enough(Exception):
    """Ends a pass of the backbone."""


class _Taken:
    """A block in which the backbone runs; `features` are what entered the module with the hook, at its last run.

    Args:
        enough (int): After so many runs the rest of the block is left out.
    """

    def __init__(self, enough=None):
        self.enough, self.runs, self.features = enough, 0, None

    def __enter__(self):
        _now.taken = self
        return self

    def take(self, features):
        self.features, self.runs = features, self.runs + 1
        if self.runs == self.enough:
            raise _Enough

    def __exit__(self, kind, error, traceback):
        _now.taken = None
        return kind is _Enough
