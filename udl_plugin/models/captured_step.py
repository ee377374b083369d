"""A training step as one CUDA graph: a single call of Python starts all its kernels, and nothing waits for Python."""
from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from basicsr.utils import get_root_logger
from torch import Tensor

from udl_plugin.errors import UserError
from udl_plugin.models.train_step import StepResult, TrainStep

EAGER_STEPS = 3  # in which cuDNN selects kernels, the optimizer makes its state and torch.compile compiles
FROM_TENSORS = 'progress_in_tensors'


def computes_from_tensors(loss: Any) -> bool:
    """Whether a loss computes from tensors alone. One with `set_progress` may keep the iteration as a number, which a
    graph would not see change, unless it declares `progress_in_tensors = True`."""
    return not hasattr(loss, 'set_progress') or getattr(loss, FROM_TENSORS, False)


def why_not_captured(step: TrainStep, opt: dict[str, Any], *losses: Any) -> str | None:
    """Returns why a step cannot be a CUDA graph, or None if nothing is known to prevent it.

    Args:
        step: With its optimizer.
        opt: Of the training.
        losses: Of the training.
    """
    if opt['num_gpu'] != 1 or opt['dist']:
        return 'requires num_gpu: 1, and one process'
    if not step.stays_on_device:
        return 'requires a fused optimizer, such as Adam without foreach or fused: false'
    for loss in losses:
        if not computes_from_tensors(loss):
            return (f'{type(loss).__name__} has set_progress; if that changes nothing but tensors, in place, declare '
                    f'{FROM_TENSORS} = True in the class')
    return None


class Recorder(Protocol):
    """What captures a function; `CudaRecorder`, or a stand-in for it."""

    def run(self, function: Callable[[], StepResult]) -> tuple[StepResult, str | None]:
        """Runs the function as it is, to prepare for `capture`. Returns its result, and where it waits for the GPU."""

    def capture(self, function: Callable[[], StepResult]) -> tuple[StepResult, Callable[[], None]]:
        """Returns the function's result, and what computes it, in place."""


class CudaRecorder:
    """CUDA graphs of PyTorch. All work is on one stream of its own, as autograd requires of what is captured."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def run(self, function: Callable[[], StepResult]) -> tuple[StepResult, str | None]:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            torch.cuda.set_sync_debug_mode('warn')
            try:
                result = function()
            finally:
                torch.cuda.set_sync_debug_mode('default')
        torch.cuda.current_stream().wait_stream(self.stream)
        places = [f'{warning.filename}:{warning.lineno}' for warning in caught if 'synchroniz' in str(warning.message)]
        return result, places[0] if places else None

    def capture(self, function: Callable[[], StepResult]) -> tuple[StepResult, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that pins batches may call CUDA meanwhile
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode='thread_local'):
            result = function()
        return result, graph.replay


class CapturedStep:
    """Runs a `TrainStep` as it is for three iterations, then captures it, and replays it in all further ones.

    All are iterations of the training: capturing runs nothing, and changes no weight or random number. Batches of
    another shape than the captured one's run as without a graph. The learning rate is always that of the optimizer; the
    optimizer's other options, and all numbers that the network and losses keep, stay as they were when captured.

    Args:
        step: One with `stays_on_device`.
        is_required: Raise if the step cannot be captured, instead of going on without a graph.
        recorder: Default: `CudaRecorder()`.
    """

    def __init__(self, step: TrainStep, is_required: bool = False, recorder: Recorder | None = None):
        self.step, self.is_required, self.recorder = step, is_required, recorder or CudaRecorder()
        self.eager_steps: float = EAGER_STEPS  # still to go
        self.waits_at: str | None = None  # file and line, in the last of them
        self.batch: dict[str, Tensor] = {}  # that the graph reads
        self.rates: list[Tensor] = []  # learning rates that it reads
        self.result: StepResult
        self.replay: Callable[[], None]

    def __call__(self, batch: dict[str, Tensor]) -> StepResult:
        """
        Args:
            batch: As for `TrainStep`.

        Returns:
            As from `TrainStep`, in tensors that the next call overwrites.

        Raises:
            UserError: the step cannot be captured, and `is_required`. Nothing has changed.
        """
        if self.eager_steps <= 0 and not self.batch:
            self._capture(batch)
        if self.eager_steps > 0 or _shapes(batch) != _shapes(self.batch):
            self.eager_steps -= 1
            result, self.waits_at = self.recorder.run(lambda: self.step(batch))
            return result
        for name, tensor in batch.items():
            self.batch[name].copy_(tensor)
        for rate, group in zip(self.rates, self.step.optimizer.param_groups):
            rate.fill_(group['lr'])
        self.replay()
        return self.result

    def _capture(self, batch: dict[str, Tensor]) -> None:
        if self.waits_at:  # a capture that fails leaves some versions of PyTorch unable to go on
            self._go_on_without(f'{self.waits_at} waits for the GPU, as .item() and if TENSOR do')
            return
        groups = self.step.optimizer.param_groups
        own: list[dict[str, Any]] = [{key: group[key] for key in ('lr', 'capturable') if key in group}
                                     for group in groups]
        self.rates = [torch.tensor(group['lr'], device=group['params'][0].device) for group in groups]
        for group, rate in zip(groups, self.rates):
            group['lr'] = rate
            if 'capturable' in group:
                group['capturable'] = True
        self.batch = {name: tensor.clone() for name, tensor in batch.items()}
        try:
            self.result, self.replay = self.recorder.capture(lambda: self.step(self.batch))
        except RuntimeError as err:
            self.batch, self.step.is_updating = {}, False
            self._go_on_without(str(err).strip().partition('\n')[0])
        finally:
            for group, options in zip(groups, own):
                group.update(options)

    def _go_on_without(self, reason: str) -> None:
        self.eager_steps = float('inf')
        if self.is_required:
            raise UserError(f'train.cuda_graph: true: the step cannot be captured: {reason}. Write auto to train '
                            'without a graph.')
        get_root_logger().warning(f'Training without a CUDA graph: {reason}.')


def _shapes(batch: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in batch.items()}
