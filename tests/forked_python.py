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

PATIENCE = 300  # seconds that any entry point may take in a test
SERVER = """
import faulthandler, json, os, runpy, sys
import cv2, lmdb, matplotlib.pyplot, mmengine.runner, pydantic, scipy.stats, torch.utils.tensorboard, torchvision

for line in sys.stdin:
    (module, *arguments), folder, output = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
assert not [name for name in sys.modules if name.startswith(('basicsr', 'udl_plugin.'))]
os.setsid()
os.chdir(folder)
for path, mode, numbers in (os.devnull, os.O_RDONLY, [0]), (output, os.O_WRONLY, [1, 2]):
    for number in numbers:
        os.dup2(os.open(path, mode), number)
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


def run_module(folder, module, *arguments):
    """`python -m module arguments` in a folder; returns the finished process with its output, stderr included.

    Raises:
        TimeoutError: it, or a process that it left behind, hangs; with its output and stacks.
    """
    server, command = _server(), [module, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as pipe_folder:
        pipe = os.path.join(pipe_folder, 'output')
        os.mkfifo(pipe)
        print(json.dumps([command, str(folder), pipe]), file=server.stdin, flush=True)
        child = int(server.stdout.readline())
        with subprocess.Popen(['cat', pipe], text=True, stdout=subprocess.PIPE) as reader:  # until all have closed it
            try:
                output, _ = reader.communicate(timeout=PATIENCE)
            except BaseException as err:
                os.killpg(child, signal.SIGABRT)
                if isinstance(err, subprocess.TimeoutExpired):
                    raise TimeoutError(f'{command} hangs: {reader.communicate()[0]}') from None
                raise
            finally:
                status = int(server.stdout.readline())
    return subprocess.CompletedProcess(command, status, output)
