"""What a network costs: multiply-adds, time, memory."""
import functools
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import torch
from torch.utils.flop_counter import FlopCounterMode

from udl_plugin.archs.build import build_network
from udl_plugin.archs.padding import get_required_multiple
from udl_plugin.archs.wrapping import base_config

OUTPUT = (720, 1280)  # the field's size for multiply-adds


def machine():
    """What it is measured on, such as `CPU, 2 threads, torch 2.8.0`."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f'CPU, {torch.get_num_threads()} threads'
    return f'{device}, torch {torch.__version__}'


def parameters(net):
    """How many numbers of it are trained."""
    return sum(parameter.numel() for parameter in net.parameters())


def multiply_adds(net, network_g, channels, upscale, output=OUTPUT):
    """Multiply-adds of a plain network for an output of that size, as far as they are convolutions and products of
    matrices, counted by torch while it runs on a small image and scaled by the number of pixels.

    Args:
        net (nn.Module): The plain network.
        network_g (dict): Its section: networks with windows want multiples of them.
        channels, upscale (int): Of its images.
        output (tuple[int]): Height and width of the SR image.
    """
    multiple = get_required_multiple(network_g)
    size = -(-48 // multiple) * multiple
    lq = torch.zeros(1, channels, size, size, device=next(net.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(lq)
    return counter.get_total_flops() / 2 * output[0] * output[1] / (upscale * size)**2


def time_in_turn(functions, lq, rounds=7):
    """Median seconds of each function on `lq`, on the GPU where there is one; the first round is not counted.

    Args:
        functions (dict[str, Callable]): Of an LR image `(1, C, H, W)`; networks are moved to the GPU.
        lq (Tensor): The image.
        rounds (int): See `seconds_in_turn`.

    Returns:
        dict[str, float]
    """
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    lq = lq.to(device)
    for function in functions.values():
        if isinstance(function, torch.nn.Module):
            function.to(device)
    with torch.no_grad():
        times = seconds_in_turn({name: functools.partial(function, lq) for name, function in functions.items()}, rounds)
    return {name: statistics.median(values) for name, values in times.items()}


def seconds_in_turn(functions, rounds, repeats=1):
    """Seconds that each function took in each round; one round before them is not counted.

    Args:
        functions (dict[str, Callable]): Without arguments.
        rounds (int): All functions run once a round, one after the other, so that a busy machine troubles all alike.
        repeats (int): How often each runs in a round, for what is over too soon; the mean counts.

    Returns:
        dict[str, list[float]]: What a round took is at the same place in all lists. On a GPU, CUDA events tell.
    """
    times = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            times[name].append(_seconds(function, repeats))
    return {name: values[1:] for name, values in times.items()}


def _seconds(function, repeats):
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def peak_memory(network_g, shape):
    """Peak memory of a plain network's one run, in bytes, beyond what was taken when it began.

    On the GPU it is what torch allocated. On the CPU it is the memory of a fresh process, which has the network built.

    Args:
        network_g (dict): The plain network's section.
        shape (tuple[int]): Of the LR image, `(1, C, H, W)`; filled up to what the network takes.

    Returns:
        int | None: None where it cannot be told: on the CPU of other systems than Linux, or where there is not
        enough.
    """
    return peak_memory_of(_runs_of, base_config(network_g), tuple(shape))


def _runs_of(network_g, shape):
    multiple = get_required_multiple(network_g)
    net = build_network(network_g).eval().to('cuda' if torch.cuda.is_available() else 'cpu')

    @torch.no_grad()
    def run(height, width):
        size = (-(-length // multiple) * multiple for length in (height, width))
        net(torch.zeros(*shape[:2], *size, device=next(net.parameters()).device))

    return functools.partial(run, 8, 8), functools.partial(run, *shape[2:])


def peak_memory_of(make, *args):
    """Peak memory of what `make(*args)` prepares, in bytes, in a fresh process.

    Args:
        make (Callable): A function of a module. Returns two functions without arguments: a small run, for libraries
            load what they need at the first one, and the run that is measured, beyond what was taken when it began.
        args: They can be pickled.

    Returns:
        int | None: As `peak_memory`.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        try:
            return pool.submit(_peak_memory, make, args).result()
        except RuntimeError:  # there is not enough; BrokenProcessPool is one too: killed by the system
            return None


def _peak_memory(make, args):
    small, run = make(*args)
    small()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    before = _memory('VmRSS')
    run()
    peak = _memory('VmHWM')
    return None if peak is None else peak - before


def _memory(name):
    """`VmRSS`, the memory that this process has now, or `VmHWM`, the most that it had; None where there is no /proc."""
    try:
        with open('/proc/self/status') as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))
    except OSError:
        return None
