import sys

import pytest
import torch

from udl_plugin.utils import memory
from udl_plugin.utils.memory import NotEnoughMemory, available_memory, explain_out_of_memory

ERRORS = [MemoryError(), torch.cuda.OutOfMemoryError('CUDA out of memory.'),
          RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to"),
          RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'),
          RuntimeError('could not create a primitive')]


@pytest.mark.parametrize('err', ERRORS, ids=str)
def test_out_of_memory_is_explained(err):
    def fail():
        raise err

    with pytest.raises(NotEnoughMemory, match='take less') as caught:
        explain_out_of_memory('take less', fail)
    assert caught.value.__context__ is None  # which would keep the tensors of the failed call alive


def test_error_of_torch_itself():
    with pytest.raises(NotEnoughMemory):
        explain_out_of_memory('', torch.empty, 2 ** 55)


def test_other_errors_pass():
    def fail():
        raise RuntimeError('shape mismatch')

    with pytest.raises(RuntimeError, match='^shape mismatch$'):
        explain_out_of_memory('', fail)
    assert explain_out_of_memory('', max, 3, 2) == 3


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_ulimit_counts():
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open('/proc/self/statm') as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2 ** 27, hard))
    try:
        assert available_memory() <= 2 ** 27
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_limit_of_a_container_counts(tmp_path, monkeypatch):
    unlimited = available_memory()
    monkeypatch.setattr(memory, 'CGROUPS', tmp_path)
    texts = {'memory.max': '1000', 'memory.current': '700', 'memory.stat': 'anon 5\ninactive_file 50\n'}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    if unlimited is not None:
        assert available_memory() == 350 < unlimited
