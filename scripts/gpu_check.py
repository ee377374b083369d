"""All that a GPU has to say about this package, in eight minutes at most: make gpu, or this script [--help].

Each part runs in a process of its own, the most important one first, with a limit of time; a part that fails is
reported, and the others go on. No network and no data are needed. Writes DIR/gpu.md and DIR/gpu.json after each part,
and what a part prints, as it prints it, to DIR/PART.log. The part `suite` runs only when --parts names it.
Rehearse it on the CPU: python scripts/gpu_check.py --device cpu --tiny --out DIR
"""
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'scripts'))
import benchmark  # noqa: E402

from udl_plugin.inference.cost import machine, seconds_in_turn  # noqa: E402
from udl_plugin.prepare.datasets import prepare_train  # noqa: E402
from udl_plugin.prepare.demo_data import write_demo_data  # noqa: E402
from udl_plugin.studies.report import markdown_table  # noqa: E402
from udl_plugin.utils.atomic_io import atomic_write  # noqa: E402

FAST = 'bf16, channels_last'
COMPILED = next(iter(benchmark.COMPILED))
# of an iteration's time to that of the authors' in float32, by method: batch 16, with compile, batch 64, with compile
TARGETS = {'plain, L1': (0.20, 0.12, 0.34, 0.25), 'step 1 (ESU)': (0.28, 0.20, 0.50, 0.38),
           'step 2': (0.27, 0.18, 0.47, 0.35), 'step 2, cached maps': (0.20, 0.12, 0.34, 0.25)}


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.part:
        result = PARTS[args.part][0](args)
        atomic_write(Path(args.out, 'parts', f'{args.part}.json'), json.dumps(result).encode())
        return 0
    results: dict[str, Any] = {'machine': machine(), 'parts': {}}
    begin = time.time()
    for name, (_, limit) in PARTS.items():
        if name not in args.parts:
            continue
        print(f'{name} (up to {limit} s) ...', flush=True)
        results['parts'][name] = run_part(name, min(limit, args.limit - (time.time() - begin)), args)
        results['seconds'] = round(time.time() - begin)
        atomic_write(Path(args.out, 'gpu.json'), json.dumps(results, indent=1).encode())
        atomic_write(Path(args.out, 'gpu.md'), format_results(results).encode())
    print(format_results(results))
    return any('error' in part for part in results['parts'].values())


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda', help='cpu: a rehearsal')
    parser.add_argument('--tiny', action='store_true', help='a small network, small batches and few iterations')
    parser.add_argument('--out', default='results/gpu', metavar='DIR', help='output folder (default: %(default)s)')
    parser.add_argument('--limit', type=float, default=480, metavar='SECONDS', help='of all parts (default: 480)')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=[name for name in PARTS if name != 'suite'],
                        help='(default: all but suite)')
    parser.add_argument('--part', choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.out = str(Path(args.out).resolve())
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('PyTorch finds no GPU. To rehearse: --device cpu --tiny')
    return args


def run_part(name: str, limit: float, args: argparse.Namespace) -> dict[str, Any]:
    """Runs one part in a new process; returns its result, `markdown` and numbers, or `error`."""
    if limit < 5:
        return {'error': 'no time was left'}
    command = [sys.executable, __file__, '--part', name, '--device', args.device, '--out', args.out,
               *['--tiny'] * args.tiny]
    environment = {**os.environ, 'PYTHONUNBUFFERED': '1'}  # the log has all lines even of a part that is killed
    if args.device == 'cpu':
        environment['CUDA_VISIBLE_DEVICES'] = ''
    begin = time.time()
    status: Any = None
    with open(get_log(make_folder(args.out), name), 'wb') as log, subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True) as process:
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
            status = f'ran longer than {limit:.0f} s'
    if status:
        lines = get_log(args.out, name).read_text(encoding='utf-8', errors='replace').strip().splitlines()
        result = {'error': f'{status}: ' + ' / '.join(find_failed_tests(lines) or lines[-5:])}
    else:
        result = json.loads(Path(args.out, 'parts', f'{name}.json').read_text(encoding='utf-8'))
    return {**result, 'seconds': round(time.time() - begin)}


def make_folder(path: str) -> str:
    Path(path, 'parts').mkdir(parents=True, exist_ok=True)
    return path


def get_log(out: str, name: str) -> Path:
    return Path(out, f'{name}.log')


def find_failed_tests(lines: list[str]) -> list[str]:
    """The last 30 lines in which pytest names a test that failed."""
    return [line for line in lines if re.search(r'\b(FAILED|ERROR) \S*::', line)][-30:]


def format_results(results: dict[str, Any]) -> str:
    texts = [f'{results["machine"]}; {results["seconds"]} s in all.']
    for name, part in results['parts'].items():
        texts.append(f'## {name}\n\n' + (f'**Failed**: {part["error"]}' if 'error' in part else part['markdown']))
    return '\n\n'.join(texts) + '\n'


# ---- parts

def steps(args: argparse.Namespace, speed: str = FAST) -> dict[str, Any]:
    """Time of an iteration against the authors' in float32, and the goals."""
    torch.backends.cudnn.benchmark = True
    texts, numbers = [], {}
    network = 'tiny' if args.tiny else 'EDSR-S'
    for column, batch in ((0, 16), (2, 64)):
        size = (2, 8) if args.tiny else (batch, 48)
        data = benchmark.build_batch(size)
        made = benchmark.list_steps(network, [speed])
        torch._dynamo.reset()  # otherwise it compiles for any batch size at the second one
        times = seconds_in_turn({name: bind(make(), data) for name, make in made.items()}, 5,
                                repeats=1 if args.tiny else 20)
        rows = [['iteration', 'ms', 'ratio', 'middle half', 'goal']]
        for name, values in times.items():
            goal = TARGETS.get(name.replace(f', {speed}', ''), ('-',) * 4)[column + (speed == COMPILED)]
            ratio, spread = benchmark.compute_ratio(values, times[benchmark.REFERENCE])
            rows.append([name, f'{1e3 * statistics.median(values):.2f}', ratio, spread, str(goal)])
            numbers[f'{name}, batch {size[0]}'] = values
        texts.append(f'{network} x4, batch {size[0]}, LR patches of {size[1]}; ratio to "{benchmark.REFERENCE}", with '
                     f'cuDNN TF32 {"on" if torch.backends.cudnn.allow_tf32 else "off"}.\n\n{markdown_table(rows)}')
    return {'markdown': '\n\n'.join(texts), 'seconds_of_rounds': numbers}


def compiled(args: argparse.Namespace) -> dict[str, Any]:
    """The same with torch.compile. The first call of each step, which compiles, is not timed."""
    return steps(args, COMPILED)


def bind(step: Callable, data: Any) -> Callable[[], Any]:
    data = {name: tensor.to(benchmark.DEVICE) for name, tensor in data.items()}  # feeding is a part of its own
    return lambda: step(data)


def tests(args: argparse.Namespace) -> dict[str, Any]:
    """The tests that need a GPU: graph against eager, skipped steps, fp16, compile."""
    return run_pytest(args, 'tests/models', '-q',
                      *(['-k', 'gpu and float32 and plain'] if args.tiny else ['-m', 'gpu', '-n', '4']))


def suite(args: argparse.Namespace) -> dict[str, Any]:
    """The whole test suite. The log names each test as it ends, and whether it passed."""
    return run_pytest(args, '-v', *(['tests/losses/test_weights.py'] if args.tiny else ['tests', '-n', 'auto']))


def run_pytest(args: argparse.Namespace, *arguments: str) -> dict[str, Any]:
    status, output = run_logged(args, ROOT, 'pytest', '-p', 'no:cacheprovider', '-rfE', *arguments)
    lines = output.strip().splitlines()
    return {'error': ' / '.join([*find_failed_tests(lines), *lines[-1:]])} if status else {'markdown': lines[-1]}


def training(args: argparse.Namespace) -> dict[str, Any]:
    """udl-train from the command line: time of an iteration beside that of the step alone, and a resume."""
    folder, iterations = Path(make_folder(args.out), 'training'), 4 if args.tiny else 700
    shutil.rmtree(folder, ignore_errors=True)
    write_demo_data(folder / 'demo')
    prepare_train([folder / 'demo/photos/train'], [benchmark.SCALE], folder, name='photos', crop=240, step=120)
    rows = [['training set', 'iterations', 'ms an iteration', 'step alone (ms)', 'ratio', 'whole run (s)']]
    steps_file = Path(args.out, 'parts', 'steps.json')
    times = json.loads(steps_file.read_text(encoding='utf-8'))['seconds_of_rounds'] if steps_file.exists() else {}
    alone = times.get(f'plain, L1, {FAST}, batch {2 if args.tiny else 16}')
    for kind, total in (('PairedImageDataset', iterations), ('PairedImageCachedDataset', iterations),
                        ('PairedImageCachedDataset', 2 * iterations)):
        path = folder / f'{kind}.yml'
        path.write_text(yaml.safe_dump(training_options(args, folder, kind, total, iterations)), encoding='utf-8')
        start = time.time()
        output = run_module(args, folder, 'udl_plugin.train', '-opt', str(path), '--auto_resume')
        whole = f'{time.time() - start:.1f}'
        lines = re.findall(r'(\d\d):(\d\d):(\d\d),(\d+) INFO: .*iter: *([\d,]+)', output)
        stamps = [60 * (60 * int(h) + int(m)) + int(s) + int(ms) / 1000 for h, m, s, ms, _ in lines]
        begin, end = (int(lines[index][-1].replace(',', '')) for index in (1, -1))  # the first lines include the start
        seconds = (stamps[-1] - stamps[1]) / (end - begin)
        base = statistics.median(alone) if alone else None
        rows.append([kind, f'{begin} to {end}' + ' after a resume' * ('Resuming training' in output),
                     f'{1e3 * seconds:.2f}', *((f'{1e3 * base:.2f}', f'{seconds / base:.2f}') if base else ('-', '-')),
                     whole])
        print(*(f'{title}: {value}' for title, value in zip(rows[0], rows[-1])), sep='; ')
    if 'resume' not in rows[-1][1]:
        raise RuntimeError('the last training did not resume')
    return {'markdown': f'udl-train, L1, {FAST}, from LMDBs of demo photos; the log is written every '
                        f'{max(1, iterations // 15)} iterations.\n\n{markdown_table(rows)}'}


def training_options(args: argparse.Namespace, folder: Path, kind: str, total: int, save_freq: int) -> dict[str, Any]:
    """A yml of plain L1."""
    batch, side = (2, 8) if args.tiny else (16, 48)
    return {
        'name': kind, 'model_type': 'UDLModel', 'scale': benchmark.SCALE, 'num_gpu': int(args.device == 'cuda'),
        'manual_seed': 0, 'network_g': benchmark.NETWORKS['tiny' if args.tiny else 'EDSR-S'],
        'path': {'pretrain_network_g': None},
        'datasets': {'train': {
            'name': 'photos', 'type': kind, 'dataroot_gt': str(folder / 'photos_train_HR_sub.lmdb'),
            'dataroot_lq': str(folder / f'photos_train_LR_bicubic_X{benchmark.SCALE}_sub.lmdb'),
            'io_backend': {'type': 'lmdb'}, 'gt_size': benchmark.SCALE * side, 'use_hflip': True, 'use_rot': True,
            'num_worker_per_gpu': 1 if args.tiny else 8, 'batch_size_per_gpu': batch, 'dataset_enlarge_ratio': 100}},
        'train': {'total_iter': total, 'optim_g': {'type': 'Adam', 'lr': 1e-4}, 'amp': 'bf16', 'channels_last': True,
                  'scheduler': {'type': 'MultiStepLR', 'milestones': [10 ** 6]}, 'pixel_opt': {'type': 'L1Loss'}},
        'logger': {'print_freq': max(1, save_freq // 15), 'save_checkpoint_freq': save_freq, 'use_tb_logger': False}}


def run_module(args: argparse.Namespace, folder: Path, *command: str) -> str:
    """Runs `python -m` in a folder; returns what it printed, which is in the log of the part.

    Raises:
        RuntimeError: it failed.
    """
    status, output = run_logged(args, folder, *command)
    if status:
        raise RuntimeError(f'{command[0]} ended with status {status}')
    return output


def run_logged(args: argparse.Namespace, folder: Path, *command: str) -> tuple[int, str]:
    """Runs `python -m` in a folder, with its output to the log of the part; returns exit status and output."""
    log = get_log(args.out, args.part)
    begin = log.stat().st_size
    status = subprocess.run([sys.executable, '-m', *command], cwd=folder, stderr=subprocess.STDOUT, check=False,
                            env={**os.environ, 'PYTHONPATH': str(ROOT)}).returncode
    return status, log.read_bytes()[begin:].decode(errors='replace')


def profile(args: argparse.Namespace) -> dict[str, Any]:
    """Wall time, time of kernels and launches of an iteration, as a graph and without."""
    network, size = ('tiny', (2, 8)) if args.tiny else ('EDSR-S', (16, 48))
    rows = [['iteration', 'wall ms', 'kernels ms', 'kernels', 'calls that launch']]
    for graph in ('auto', False):
        for method in benchmark.METHODS:
            step = bind(benchmark.build_step(network, method, {**benchmark.SPEED[FAST], 'cuda_graph': graph}),
                        benchmark.build_batch(size))
            for _ in range(6):
                step()
            seconds = seconds_in_turn({'step': step}, 3, 10)['step']
            with torch.profiler.profile() as profiler:
                for _ in range(5):
                    step()
                if args.device == 'cuda':
                    torch.cuda.synchronize()
            events = profiler.events()
            kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA
                       and not getattr(event, 'is_user_annotation', False)]
            launches = sum('Launch' in event.name for event in events if event not in kernels)
            rows.append([f'{method}, {"graph" if graph else "eager"}', f'{1e3 * sorted(seconds)[1]:.2f}',
                         f'{sum(event.device_time for event in kernels) / 5e3:.2f}', str(len(kernels) // 5),
                         str(launches // 5)])
    return {'markdown': f'{network} x4, batch {size[0]}, {FAST}.\n\n{markdown_table(rows)}'}


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of an iteration."""
    network, size = ('tiny', (2, 8)) if args.tiny else ('EDSR-S', (64, 48))
    return {'markdown': benchmark.memory(network, size, argparse.Namespace(speeds=[FAST]))}


def loading(args: argparse.Namespace) -> dict[str, Any]:
    """Batches from LMDBs, with two workers, against a fixed batch."""
    network, size = ('tiny', (2, 8)) if args.tiny else ('EDSR-S', (16, 48))
    return {'markdown': benchmark.loading(network, size, argparse.Namespace(rounds=2 if args.tiny else 3))}


def mmengine(args: argparse.Namespace) -> dict[str, Any]:
    """mmengine's training with --amp."""
    folder, iterations = Path(make_folder(args.out), 'mmengine'), 3 if args.tiny else 300
    if not (folder / 'datasets/demo').exists():
        write_demo_data(folder / 'datasets/demo')
    output = run_module(
        args, folder, 'udl_plugin.cli.mm', 'train', str(ROOT / 'options/mmengine/demo_udl_step1.py'),
        *['--amp'] * (args.device == 'cuda'), '--cfg-options', f'train_cfg.max_iters={iterations}',
        f'train_cfg.val_interval={iterations}', 'default_hooks.logger.interval=50')
    lines = re.findall(r'Iter\(train\).*|.*PSNR: .*', output)
    return {'markdown': '```\n' + '\n'.join(line.strip() for line in lines[-4:]) + '\n```'}


PARTS: dict[str, tuple[Callable[[argparse.Namespace], dict[str, Any]], int]] = {  # with its limit in seconds
    'steps': (steps, 90), 'tests': (tests, 120), 'training': (training, 100), 'profile': (profile, 60),
    'compiled': (compiled, 180), 'memory': (memory, 60), 'loading': (loading, 60), 'mmengine': (mmengine, 45),
    'suite': (suite, 300)}

if __name__ == '__main__':
    sys.exit(main())
