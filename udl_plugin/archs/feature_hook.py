"""Finds the layer whose input the variance head takes, and captures that input in a forward pass."""
import threading
from collections import namedtuple

from torch import nn

from udl_plugin.archs.build import is_map, probe_shapes, shape_of_first
from udl_plugin.errors import UserError, did_you_mean

MAX_SHOWN = 12  # candidates in an error


# ---- where the features are

# runs: of the module, in one pass; num_feat, upscale and num_out_ch of the head; scale of the network
FeatureLayer = namedtuple('Place', 'module runs num_feat upscale num_out_ch scale')
ModuleCall = namedtuple('Run', 'name module input output is_leaf')  # of a module; input and output are shapes


def find_feature_layer(net, name=None):
    """Finds the features that enter the upsampler of `net`, by running it on a small black image.

    Args:
        net (nn.Module): `(N, C, H, W)` to a larger image, or one of that size, of 3 or 1 channels.
        name (str): The module whose input they are; None: see `WithVariance`.

    Raises:
        UserError: `net` cannot be run, there is nothing of that name, or what enters there is no map of features.
    """
    what = f'{type(net).__name__}: features:'
    if name is not None and not isinstance(name, str):
        raise UserError(f'{what} {name!r} is no name of a module.')
    runs, lq, output = trace_modules(net)
    usable = {run.name: run for run in runs if is_map(run.input) and output[2] % run.input[2] == 0}
    if name is None:
        chosen = usable.get(_entry_of_upsampler(runs))
        hint = 'the place cannot be found by itself; name the module whose input they are.'
    else:
        chosen = usable.get(name)
        hint = f"there is no '{name}'{did_you_mean(name, usable)}, or no map enters it."
    if chosen is None:
        raise UserError(f'{what} {hint} Those that run last, with the channels of their input: '
                         + ', '.join(f'{run.name} ({run.input[1]})' for run in list(usable.values())[-MAX_SHOWN:]) + '.')
    return FeatureLayer(chosen.name, sum(run.name == chosen.name for run in runs), chosen.input[1],
                 output[2] // chosen.input[2], output[1], output[2] // lq[2])


def _entry_of_upsampler(runs):
    """The name of the module whose input enters the upsampler, or None."""
    runs = [run for run in runs if run.is_leaf and is_map(run.input) and is_map(run.output)]
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


def trace_modules(net):
    """Runs `net` on a small black image.

    Returns:
        tuple[list[Run], tuple[int], tuple[int]]: What ran, in the order in which it began; the shapes of the image and
        of its output.

    Raises:
        UserError: see `run_small`.
    """
    runs, stack, handles = [], [], []

    def enter(name):
        def hook(module, args):
            if stack:
                stack[-1]['is_leaf'] = False
            stack.append({'name': name, 'module': module, 'input': shape_of_first(args), 'is_leaf': True})
            runs.append(stack[-1])
        return hook

    def leave(module, args, output):
        stack.pop()['output'] = shape_of_first((output,))

    def forget(*_):
        runs.clear()
        stack.clear()

    handles.append(net.register_forward_pre_hook(forget))
    for name, module in net.named_modules():
        if name:
            handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        lq, output = probe_shapes(net)
    finally:
        for handle in handles:
            handle.remove()
    return [ModuleCall(**run) for run in runs], lq, output


# ---- how they are taken out

_current = threading.local()  # `taken` in it: of the pass that this thread is in. DataParallel runs one network in many


def capture_hook(module, args):
    """The hook on the module that the features enter. A function of the module's own, so that networks with it can be
    copied, pickled and run in several threads."""
    taken = getattr(_current, 'taken', None)
    if taken is not None:
        taken.take(args[0])


class _StopForward(Exception):
    """Ends a pass of the backbone."""


class FeatureCapture:
    """A block in which the backbone runs; `features` are what entered the module with the hook, at its last run.

    Args:
        enough (int): After so many runs the rest of the block is left out.
    """

    def __init__(self, enough=None):
        self.enough, self.runs, self.features = enough, 0, None

    def __enter__(self):
        _current.taken = self
        return self

    def take(self, features):
        self.features, self.runs = features, self.runs + 1
        if self.runs == self.enough:
            raise _StopForward

    def __exit__(self, kind, error, traceback):
        _current.taken = None
        return kind is _StopForward
