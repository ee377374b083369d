"""Python processes that start in half a second instead of five: forks of one that has imported PyTorch and other
packages, but nothing of BasicSR or ours."""
import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading

PATIENCE = 300  # seconds that any entry point may take in a test
SERVER = """
import faulthandler, json, os, runpy, sys
import cv2, distutils.version, lmdb, matplotlib.pyplot, mmengine.runner, pydantic, scipy.stats
import torch.utils.tensorboard, torchvision

for line in sys.stdin:
    (module, *arguments), folder, pipe = json.loads(line)
    output = os.open(pipe, os.O_WRONLY)
    child = os.fork()
    if child == 0:
        break
    os.close(output)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
assert not [name for name in sys.modules if name.startswith(('basicsr', 'udl_plugin.'))]
os.setsid()
os.chdir(folder)
for file, numbers in (os.open(os.devnull, os.O_RDONLY), [0]), (output, [1, 2]):
    for number in numbers:
        os.dup2(file, number)
    os.close(file)
faulthandler.enable()
sys.argv, sys.path[0] = [module, *arguments], folder
runpy.run_module(module, run_name='__main__', alter_sys=True)
"""


@functools.lru_cache(maxsize=1)
def _server():
    server = subprocess.Popen([sys.executable, '-c', SERVER], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env={**os.environ, 'UDL_PLUGIN_AUTOLOAD': '1'})
    atexit.register(server.kill)
    return server


class Forked:
    """`python -m module arguments` in a folder, as a subprocess.Popen; one at a time. It leads a process group.

    Attributes:
        stdout: Its output, as text, stderr included; ends when it and all processes that it left behind have closed it.
    """

    def __init__(self, folder, module, *arguments):
        server = _server()
        self.args, self.returncode = [module, *map(str, arguments)], None
        with tempfile.TemporaryDirectory() as pipe_folder:
            pipe = os.path.join(pipe_folder, 'output')
            os.mkfifo(pipe)
            output = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
            print(json.dumps([self.args, str(folder), pipe]), file=server.stdin, flush=True)
            self.pid = int(server.stdout.readline())
        os.set_blocking(output, True)
        self.stdout = open(output)  # noqa: SIM115
        self._waiting = threading.Thread(target=self._read_status, args=(server,), daemon=True)
        self._waiting.start()

    def _read_status(self, server):
        self.returncode = int(server.stdout.readline())

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        self._waiting.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)


def run_module(folder, module, *arguments):
    """`python -m module arguments` in a folder; returns the finished process with its output, stderr included.

    Raises:
        TimeoutError: it, or a process that it left behind, hangs; with its output and stacks.
    """
    process, hangs = Forked(folder, module, *arguments), threading.Event()

    def abort():
        hangs.set()
        os.killpg(process.pid, signal.SIGABRT)

    timer = threading.Timer(PATIENCE, abort)
    timer.start()
    try:
        with process.stdout:
            output = process.stdout.read()
    except BaseException:
        os.killpg(process.pid, signal.SIGABRT)
        raise
    finally:
        timer.cancel()
        status = process.wait()
    if hangs.is_set():
        raise TimeoutError(f'{process.args} hangs: {output}')
    return subprocess.CompletedProcess(process.args, status, output)
