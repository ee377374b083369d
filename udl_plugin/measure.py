"""What a network costs: multiply-adds, time, memory."""
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import torch
from torch.utils.flop_counter import FlopCounterMode

from udl_plugin.archs.with_variance import build
from udl_plugin.sections import plain_section, size_multiple

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
    multiple = size_multiple(network_g)
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
        rounds (int): All functions run once a round, one after the other, so that a busy machine troubles all alike.

    Returns:
        dict[str, float]
    """
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    lq = lq.to(device)
    times = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            if isinstance(function, torch.nn.Module):
                function.to(device)
            start = time.perf_counter()
            with torch.no_grad():
                function(lq)
            if device.type == 'cuda':
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


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
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        try:
            return pool.submit(_peak_memory, plain_section(network_g), tuple(shape)).result()
        except RuntimeError:  # there is not enough; BrokenProcessPool is one too: killed by the system
            return None


def _peak_memory(network_g, shape):
    multiple = size_multiple(network_g)
    net = build(network_g).eval()
    small, lq = torch.zeros(1, shape[1], *[8 * multiple] * 2), torch.zeros(
        *shape[:2], *(-(-size // multiple) * multiple for size in shape[2:]))
    with torch.no_grad():
        if torch.cuda.is_available():
            net, lq = net.cuda(), lq.cuda()
            net(small.cuda())
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            net(lq)
            return torch.cuda.max_memory_allocated() - before
        net(small)  # libraries load what they need at the first run
        before = _memory('VmRSS')
        net(lq)
    peak = _memory('VmHWM')
    return None if peak is None else peak - before


def _memory(name):
    """`VmRSS`, the memory that this process has now, or `VmHWM`, the most that it had; None where there is no /proc."""
    try:
        with open('/proc/self/status') as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))
    except OSError:
        return None
