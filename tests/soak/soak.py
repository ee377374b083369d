"""Trainings that are killed, interrupted and starved at random moments, resumed each time, and compared in the end with
one that nothing happened to: bit for bit.

    make soak    # 50 faults over trainings of the demo's step 1
    python tests/soak/soak.py --faults 5 --seed 3

Full disks and read-only folders are real ones where file systems can be mounted (root), and otherwise a sync that says
that the disk is full, and modes. Status 0: all survived, nothing lost.
"""
import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import yaml

from udl_plugin.inference.cost import machine
from udl_plugin.prepare.demo_data import write_demo_data
from udl_plugin.utils.atomic_io import atomic_write

ROOT = Path(__file__).resolve().parents[2]
LMDBS = ('demo_train_HR_sub.lmdb', 'demo_train_LR_bicubic_X2_sub.lmdb')
PATIENCE = 120  # seconds that a process may take to do what it should
ENDS_WITHIN = 10  # seconds after Ctrl-C or SIGTERM
FULL = """
import errno, os, sys
from udl_plugin import train
def fsync(number):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
os.fsync = fsync
sys.exit(train.main())
"""


class Lost(Exception):
    """A promise that was not kept."""


class Process:
    """A training under way; `lines` is what it has said so far."""

    def __init__(self, folder, yml, full=False):
        self.lines = []
        if full:
            (folder / 'full_disk.py').write_text(FULL)
        self.process = self.start(folder, 'full_disk' if full else 'udl_plugin.train', '-opt', yml.name,
                                  '--auto_resume')
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    @staticmethod
    def start(folder, module, *arguments):
        return subprocess.Popen([sys.executable, '-u', '-m', module, *arguments], cwd=folder, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    def iteration(self):
        """The last one that it told of; 0 before the first."""
        found = re.findall(r'iter: *([\d,]+), lr', ''.join(self.lines[-20:]))
        return int(found[-1].replace(',', '')) if found else 0

    def wait(self, seconds=PATIENCE):
        """Its exit status."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise Lost(f'it hangs: {self.tail()}') from None
        self.reader.join(10)
        return status

    def tail(self):
        return ''.join(self.lines[-15:])


class Soak:
    """
    Args:
        folder (Path): An empty one, of its own.
        data (Path): As `write_demo_data` writes it; damaged and mended here, so a copy.
        section (dict): The yml of the training, without its name.
        seed (int): Of moments and kinds.
        mounts (bool): Whether full disks and read-only folders are real ones.
        tell (Callable): Called with a line on each fault.
    """

    def __init__(self, folder, data, section, seed, mounts=False, tell=print):
        self.data, self.section, self.mounts, self.tell = data, section, mounts, tell
        self.folder = folder / 'disk'  # small, where it can be
        self.folder.mkdir()
        self.random, self.trainings, self.injected = random.Random(seed), 0, []
        self.undisturbed, self.seconds = None, 0
        self.pristine = folder / 'pristine'
        for name in LMDBS:
            shutil.copytree(data / name, self.pristine / name)

    def yml(self, name):
        path = self.folder / f'{name}.yml'
        path.write_text(yaml.safe_dump({**self.section, 'name': name}, sort_keys=False))
        return path

    def run(self, kinds):
        """Injects faults of these kinds, one after the other, into as many trainings as it takes."""
        if not self.mounts:
            return self.run_here(kinds)
        subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', self.folder], check=True)
        try:
            return self.run_here(kinds)
        finally:
            subprocess.run(['umount', '--lazy', self.folder], check=True)

    def run_here(self, kinds):
        start = time.time()
        self.finish('undisturbed')
        self.seconds = time.time() - start
        self.undisturbed = self.weights('undisturbed')
        self.remove('undisturbed')
        waiting, name = list(kinds), None
        while waiting:
            if name is None:
                self.trainings += 1
                name = f'training_{self.trainings}'
            if self.inject(waiting[0], name):
                self.injected.append(waiting.pop(0))
                self.refuse_torn(name)
            if (self.folder / 'experiments' / name / 'models/net_g_latest.pth').exists() or not waiting:
                self.compare(name)
                self.remove(name)
                name = None

    def inject(self, kind, name):
        """Starts or resumes a training and does it harm at a random moment; False where it had finished by then."""
        yml, before = self.yml(name), self.newest(name)
        full = kind == 'full disk' and not self.mounts
        process = Process(self.folder, yml, full)
        if self.random.random() < 0.75:  # else also while it starts
            latest = time.time() + PATIENCE
            while process.process.poll() is None and not process.iteration():
                if time.time() > latest:
                    process.wait(0)
                time.sleep(0.05)
        time.sleep(self.random.uniform(0, 1 + 0.6 * self.seconds / 3))
        if process.process.poll() is not None and not full:
            if process.process.returncode:
                raise Lost(f'{kind} had not come yet, and it ended: {process.tail()}')
            return False
        reached = process.iteration()
        getattr(self, kind.replace(' ', '_').replace('-', '_'))(process, name)
        self.tell(f'{len(self.injected) + 1}: {kind} in {name} after iteration {reached}; '
                  f'whole states up to {self.newest(name)}')
        if self.newest(name) < before:
            raise Lost(f'{name} fell from state {before} to {self.newest(name)}')
        return True

    def sigkill(self, process, name):
        process.process.kill()
        process.wait()

    def sigterm(self, process, name, number=signal.SIGTERM):
        start, started = time.time(), process.iteration()
        os.killpg(process.process.pid, number)  # as a batch system and a terminal do: to all processes
        status, seconds = process.wait(), time.time() - start
        if status == 0 and process.iteration() == self.section['train']['total_iter']:
            return  # it was ending anyway
        if started and (status != 128 + number or seconds > ENDS_WITHIN):
            raise Lost(f'status {status} after {seconds:.1f} s: {process.tail()}')
        if started and self.newest(name) < started:
            raise Lost(f'iteration {started} was reached, and {self.newest(name)} saved')

    def sigint(self, process, name):
        self.sigterm(process, name, signal.SIGINT)

    def full_disk(self, process, name):
        if self.mounts:
            filler = self.folder / 'filler'
            with open(filler, 'wb', buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            time.sleep(self.random.uniform(0.5, 4))
            filler.unlink()
        self.goes_on(process)

    def read_only_folder(self, process, name):
        with self.read_only(name) if self.mounts else self.modes(name):
            time.sleep(self.random.uniform(0.5, 4))
        self.goes_on(process)

    def goes_on(self, process):
        """It does not mind; then it is killed, so that what it wrote meanwhile counts."""
        if process.process.poll() is None:
            process.process.kill()
            process.wait()
        elif process.process.returncode not in (0, 2):
            raise Lost(f'status {process.process.returncode}: {process.tail()}')

    @contextlib.contextmanager
    def modes(self, name):
        folders = [path for path in self.written(name) if path.exists()]
        for path in folders:
            path.chmod(0o555)
        try:
            yield
        finally:
            for path in folders:
                path.chmod(0o755)

    @contextlib.contextmanager
    def read_only(self, name):
        done = []
        try:
            for path in filter(Path.exists, self.written(name)):
                subprocess.run(['mount', '--bind', path, path], check=True)
                done.append(path)
                subprocess.run(['mount', '-o', 'remount,ro,bind', path], check=True)
            yield
        finally:
            for path in done:
                subprocess.run(['umount', '--lazy', path], check=True)

    def truncated_lmdb(self, process, name):
        lmdb = self.data / self.random.choice(LMDBS) / 'data.mdb'
        self.damaged(process, lmdb, lambda: os.truncate(lmdb, int(self.random.uniform(0, 0.9) * lmdb.stat().st_size)),
                     'truncated')

    def deleted_lmdb(self, process, name):
        lmdb = self.data / self.random.choice(LMDBS) / 'data.mdb'
        self.damaged(process, lmdb, lmdb.unlink, 'was deleted or replaced while|has no data.mdb')

    def damaged(self, process, lmdb, harm, promised):
        harm()
        try:
            status = process.wait()
        finally:
            shutil.copyfile(self.pristine / lmdb.parent.name / lmdb.name, f'{lmdb}.new')
            os.replace(f'{lmdb}.new', lmdb)
        last = process.lines[-1] if process.lines else ''
        if status == 0 and process.iteration() == self.section['train']['total_iter']:
            return  # nothing had to be read any more
        if status != 2 or not re.search(promised, last) or str(lmdb.parent.name) not in last:
            raise Lost(f'status {status}: {process.tail()}')

    def written(self, name):
        experiment = self.folder / 'experiments' / name
        return [experiment / 'models', experiment / 'training_states']

    def newest(self, name):
        """The iteration of the newest state; 0 where there is none."""
        states = (self.folder / 'experiments' / name / 'training_states').glob('*.state')
        return max([int(path.stem) for path in states], default=0)

    def refuse_torn(self, name):
        """Loads all that has a final name, and looks for the network of each state."""
        models, states = self.written(name)
        for path in [*models.glob('*.pth'), *states.glob('*.state')]:
            try:
                torch.load(path, weights_only=True)
            except Exception as err:
                raise Lost(f'{path} is torn: {err}') from err
        for path in states.glob('*.state'):
            if not (models / f'net_g_{path.stem}.pth').exists():
                raise Lost(f'{path} has no network')

    def finish(self, name):
        process = Process(self.folder, self.yml(name))
        if process.wait(PATIENCE + 20 * self.seconds + 600):
            raise Lost(f'{name} could not be finished: {process.tail()}')

    def weights(self, name):
        content = torch.load(self.folder / 'experiments' / name / 'models/net_g_latest.pth', weights_only=True)
        state = torch.load(self.folder / 'experiments' / name / 'training_states' /
                           f'{self.section["train"]["total_iter"]}.state', weights_only=True)
        return content['params'], content['params_ema'], state['best_metric_results']

    def compare(self, name):
        self.finish(name)
        self.refuse_torn(name)
        (params, ema, best), (wanted, wanted_ema, wanted_best) = self.weights(name), self.undisturbed
        for found, expected in ((params, wanted), (ema, wanted_ema)):
            if found.keys() != expected.keys() or not all(torch.equal(found[key], expected[key]) for key in expected):
                raise Lost(f'{name} ended with other weights than an undisturbed training')
        if best != wanted_best:
            raise Lost(f'{name} ended with other best results than an undisturbed training: {best}, not {wanted_best}')
        self.tell(f'{name}: bit for bit the weights of the undisturbed training, and its best results')


    def remove(self, name):
        for folder in ('experiments', 'tb_logger'):
            for path in (self.folder / folder).glob(f'{name}*'):
                shutil.rmtree(path)


KINDS = ('sigkill', 'sigterm', 'sigint', 'full disk', 'read-only folder', 'truncated lmdb', 'deleted lmdb')


def can_mount(folder):
    probe = folder / 'probe'
    probe.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', probe], capture_output=True, check=False).returncode:
        return False
    subprocess.run(['umount', probe], check=True)
    return True


def demo_section(data):
    """The demo's step 1, a third of its iterations, with moving average, and checkpoints that come often."""
    section = yaml.safe_load((ROOT / 'options/demo/train_udl_step1.yml').read_text())
    section['num_gpu'] = 0
    section['train'].update(ema_decay=0.99, total_iter=400)
    section['train']['scheduler']['periods'] = [400]
    section['val'].update(val_freq=90, save_best='psnr')
    section['logger'] = {'print_freq': 1, 'save_checkpoint_freq': 40, 'save_keep': 3, 'use_tb_logger': True}
    section['datasets']['train'].update(dataset_enlarge_ratio=1, num_worker_per_gpu=2)
    for phase in ('train', 'val'):
        for key in ('dataroot_gt', 'dataroot_lq'):
            section['datasets'][phase][key] = section['datasets'][phase][key].replace('datasets/demo', str(data))
    return section


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--faults', type=int, default=50)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=Path('results/soak.md'))
    args = parser.parse_args()
    start, kinds = time.time(), [KINDS[number % len(KINDS)] for number in range(args.faults)]
    random.Random(args.seed).shuffle(kinds)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_demo_data(folder / 'data')
        mounts, lost = can_mount(folder), ''
        soak = Soak(folder, folder / 'data', demo_section(folder / 'data'), args.seed, mounts)
        try:
            soak.run(kinds)
        except Lost as err:
            lost = str(err)
    lines = ['| fault | injected | survived |', '|---|---|---|']
    lines += [f'| {kind} | {kinds.count(kind)} | {soak.injected.count(kind)} |' for kind in KINDS]
    disk = 'a disk of 64 MB that was full, and mounts that were read-only' if mounts else 'no mounts: see the script'
    lines += ['', f'{len(soak.injected)} faults injected and survived in {soak.trainings} trainings, seed {args.seed}, '
              f'{disk}; lost: {lost or "nothing"}. {(time.time() - start) / 60:.0f} minutes, {machine()}.', '']
    atomic_write(args.out, '\n'.join(lines).encode())
    print('\n'.join(lines))
    return 1 if lost else 0


if __name__ == '__main__':
    sys.exit(main())
