"""Cost of a network: multiply-adds, time, memory."""
from __future__ import annotations

import functools
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from udl_plugin.archs.build import build_network, trace_modules
from udl_plugin.archs.padding import get_required_multiple
from udl_plugin.archs.wrapping import base_config
from udl_plugin.utils.user_imports import get_imported, import_user_modules

MEMORY_FACTOR = 3  # of a run over the largest input and output of a module
OUTPUT_SIZE = (720, 1280)  # for which the literature states multiply-adds


def machine() -> str:
    """Describes what costs are measured on, such as `CPU, 2 threads, torch 2.8.0`."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f'CPU, {torch.get_num_threads()} threads'
    return f'{device}, torch {torch.__version__}'


def parameters(net: nn.Module) -> int:
    """Number of trainable values; a frozen branch keeps its tensors as buffers and does not count."""
    return sum(parameter.numel() for parameter in net.parameters())


def multiply_adds(net: nn.Module, network_g: Mapping[str, Any], channels: int, upscale: int) -> float:
    """Multiply-adds for an SR image of `OUTPUT_SIZE`: of convolutions and matrix products, counted on a small image.

    Args:
        net: A base network.
        network_g: Its config, for the multiple that its input size has to be.
        channels, upscale: Of its images.
    """
    size = _round_up(48, get_required_multiple(network_g))
    lq = torch.zeros(1, channels, size, size, device=next(net.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(lq)
    return counter.get_total_flops() / 2 * math.prod(OUTPUT_SIZE) / (upscale * size)**2


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


@torch.no_grad()
def time_in_turn(functions: Mapping[str, Callable[[Tensor], Any]], lq: Tensor, rounds: int = 7) -> dict[str, float]:
    """Median seconds of each function on an LR image `(1, C, H, W)`, on the GPU if there is one.

    Networks among the functions are moved there. For `rounds`, see `seconds_in_turn`.
    """
    lq = lq.to(_device())
    for function in functions.values():
        if isinstance(function, nn.Module):
            function.to(lq.device)
    times = seconds_in_turn({name: functools.partial(function, lq) for name, function in functions.items()}, rounds)
    return {name: statistics.median(values) for name, values in times.items()}


def _device() -> torch.device:
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def seconds_in_turn(functions: Mapping[str, Callable[[], Any]], rounds: int,
                    repeats: int = 1) -> dict[str, list[float]]:
    """Seconds of each function in each round, after a warm-up round.

    Args:
        functions: Without arguments.
        rounds: All functions run once per round, one after the other, so that a busy machine affects all alike.
        repeats: Runs per round, for short functions; their mean counts.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            times[name].append(_seconds(function, repeats))
    return {name: values[1:] for name, values in times.items()}


def _seconds(function: Callable[[], Any], repeats: int) -> float:
    """Mean seconds of a run."""
    _synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        function()
    _synchronize()
    return (time.perf_counter() - begin) / repeats


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory_per_pixel(net: nn.Module) -> float:
    """Estimates the bytes that a run of a network takes on the CPU per LR pixel, from the sizes of its features."""
    calls, lq, _ = trace_modules(net)
    largest = max(math.prod(call.input) + math.prod(call.output) for call in calls)
    return 4 * MEMORY_FACTOR * largest / math.prod(lq[2:])


def peak_memory(network_g: Mapping[str, Any], shape: Sequence[int]) -> int | None:
    """Peak memory of one run of the base network of a config, in bytes; see `peak_memory_of`.

    Args:
        network_g: Config of the network, or of a step of it.
        shape: Of the LR image, `(1, C, H, W)`; padded to the multiple that the network requires.
    """
    return peak_memory_of(_prepare_runs, base_config(network_g), tuple(shape))


def _prepare_runs(network_g: dict[str, Any], shape: tuple[int, ...]) -> tuple[Callable, Callable]:
    multiple = get_required_multiple(network_g)
    net = build_network(network_g).eval().to(_device())

    @torch.no_grad()
    def run(height: int, width: int) -> None:
        size = (_round_up(length, multiple) for length in (height, width))
        net(torch.zeros(*shape[:2], *size, device=_device()))

    return functools.partial(run, 8, 8), functools.partial(run, *shape[2:])


def peak_memory_of(make: Callable[..., tuple[Callable, Callable]], *args: Any) -> int | None:
    """Peak memory of what `make(*args)` prepares, in bytes, in a fresh process, above what was allocated before.

    On the GPU, what PyTorch allocated; on the CPU, memory of the process.

    Args:
        make: A module-level function. Returns two functions without arguments: a small run, since libraries allocate
            at the first one, and the run to measure.
        args: They can be pickled.

    Returns:
        None if it cannot be measured: on the CPU on systems other than Linux, or if memory does not suffice.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), import_user_modules, (get_imported(),)) as pool:
        try:
            return pool.submit(_peak_memory, make, args).result()
        except (RuntimeError, FileNotFoundError):  # out of memory (or killed for it: BrokenProcessPool); no /proc
            return None


def _peak_memory(make: Callable[..., tuple[Callable, Callable]], args: tuple[Any, ...]) -> int | None:
    warm_up, run = make(*args)
    warm_up()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - allocated
    before = _process_memory('VmRSS')
    run()
    return _process_memory('VmHWM') - before


def _process_memory(name: str) -> int:
    """`VmRSS`, the memory of this process now, or `VmHWM`, its peak, in bytes."""
    lines = Path('/proc/self/status').read_text(encoding='utf-8').splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
