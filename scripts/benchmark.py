"""Speed and memory of training and testing, compared with the authors' method: `make bench`, or
python scripts/benchmark.py [--help].

Everything is measured in turn, in rounds. A ratio is the median over the rounds; the interquartile range is beside it.
Runs on the GPU if there is one, otherwise on the CPU. Prints tables and writes them to DIR/steps_NETWORK.md and so on.
A network of your own, with the defaults of its options: --import mynet.py --networks MyNet.
"""
from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import logging
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.data.prefetch_dataloader import CPUPrefetcher
from basicsr.models import build_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from udl_plugin.archs.build import build_network, get_network_class
from udl_plugin.archs.feature_hook import find_feature_layer
from udl_plugin.archs.outputs import get_sr_image
from udl_plugin.archs.wrapping import wrapped_config
from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.cli.common import add_import_option, positive_int
from udl_plugin.config.class_options import scale_key
from udl_plugin.data.lmdb_io import encode
from udl_plugin.errors import UserError
from udl_plugin.inference.cost import machine, peak_memory_of, seconds_in_turn
from udl_plugin.prepare.datasets import prepare_train
from udl_plugin.prepare.demo_data import training_photos
from udl_plugin.prepare.uncertainty_maps import prepare_uncertainty
from udl_plugin.studies.config import build_metrics
from udl_plugin.studies.report import markdown_table
from udl_plugin.utils.atomic_io import atomic_write
from udl_plugin.utils.user_imports import import_user_modules

SCALE = 4
RGB = {'num_in_ch': 3, 'num_out_ch': 3, 'upscale': SCALE}
NETWORKS = {
    'EDSR-S': {'type': 'EDSR', **RGB, 'num_feat': 64, 'num_block': 16, 'res_scale': 0.1, 'rgb_mean': [0, 0, 0]},
    'DPDNN': {'type': 'DPDNN', **RGB, 'num_feat': 64, 'num_step': 6},
    'tiny': {'type': 'EDSR', **RGB, 'num_feat': 8, 'num_block': 2},  # for the benchmark's own test
}
LAST = {'EDSR': 'upsample', 'DPDNN': 'denoiser.conv_last'}  # the layer whose input the variance head takes; else found
SPEED = {
    'float32': {},
    'channels_last': {'channels_last': True},
    'bf16': {'amp': 'bf16'},
    'bf16, channels_last': {'amp': 'bf16', 'channels_last': True},
}
COMPILED = {'bf16, channels_last, compile': {'amp': 'bf16', 'channels_last': True, 'compile': True}}
METHODS = {  # stage of the network, loss, and whether the batch has cached maps
    'plain, L1': ('plain', 'L1Loss', False),
    'step 1 (ESU)': ('step 1', 'ESU', False),
    'one run (JointUDL)': ('step 1', 'JointUDL', False),
    'step 2': ('step 2', 'UDL', False),
    'step 2, cached maps': ('step 2', 'UDL', True),
}
AUTHORS = 'step 2 as the authors run it'
REFERENCE = f'{AUTHORS}, float32'
Config = dict[str, Any]
Size = tuple[int, int]  # of a batch: number and side of LR patches
TEST_SIZE = (128, 128)  # of the LR image
# dense bf16 TFLOP/s, from NVIDIA's data sheets
PEAKS = {'H100 PCIe': 756, 'H100': 989, 'H200': 989, 'A100': 312, 'L40S': 362, 'RTX 4090': 165, 'RTX 3090': 71}
DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        import_user_modules(args.imports, '--import')
        for network in args.networks:
            build_network(wrapped_config('step 1', get_base(network)))
    except UserError as err:
        print(f'benchmark.py: {err}', file=sys.stderr)
        return 2
    on_gpu = DEVICE.type == 'cuda'
    torch.backends.cudnn.benchmark = True  # as in BasicSR
    for network, batch in itertools.product(args.networks, args.batch or ((16, 64) if on_gpu else (4,))):
        if network == 'DPDNN' and not (on_gpu or args.batch):
            batch = 1
        size = (batch, args.patch)
        name = network + (f'_batch{batch}' if on_gpu else '')
        for part in args.parts:
            if network != 'DPDNN' or part in ('steps', 'memory'):
                print(f'{name}: {part} ...', file=sys.stderr, flush=True)
                text = PARTS[part](network, size, args)
                atomic_write(Path(args.out, f'{part}_{name}.md'), (text + '\n').encode())
                print(text, end='\n\n', flush=True)
    return 0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='benchmark.py', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--networks', nargs='+', default=['EDSR-S', 'DPDNN'], metavar='NETWORK',
        help=f'{", ".join(NETWORKS)}, or the name of a registered class (default: EDSR-S DPDNN)')
    add_import_option(parser)
    add('--parts', nargs='+', choices=PARTS, default=list(PARTS), help='(default: all)')
    add('--rounds', type=positive_int, default=9, metavar='N', help='(default: %(default)s)')
    add('--batch', type=positive_int, nargs='+', metavar='N',
        help='batch sizes (default: on a GPU 16 and 64; on the CPU 4, for DPDNN 1)')
    add('--patch', type=positive_int, default=48, metavar='N', help='side of the LR patches (default: %(default)s)')
    add('--speeds', nargs='+', choices=[*SPEED, *COMPILED], default=list(SPEED), metavar='SPEED',
        help=f'options of the trainings: {"; ".join([*SPEED, *COMPILED])} (default: all but the last one)')
    add('--out', default='results/benchmark', metavar='DIR', help='output folder (default: %(default)s)')
    return parser.parse_args(argv)


def get_base(network: str) -> Config:
    """The config of a base network: one of NETWORKS, or a registered class with the defaults of its options."""
    return NETWORKS.get(network) or {'type': network, scale_key(get_network_class(network)): SCALE}


def build_batch(size: Size) -> dict[str, Tensor]:
    """LR, GT and uncertainty maps of random images."""
    number, side = size
    generator = torch.Generator().manual_seed(0)
    lq, gt, log_var = (torch.rand(number, 3, factor * side, factor * side, generator=generator)
                       for factor in (1, SCALE, SCALE))
    return {'lq': lq, 'gt': gt, 'log_var': log_var}


# ---- the authors' method

class ReferenceNetwork(nn.Module):
    """A network with the variance head of the authors' code; both always run."""

    def __init__(self, network: str):
        super().__init__()
        base = get_base(network)
        self.base, layer = build_network(base), find_feature_layer(build_network(base), LAST.get(base['type']))
        self.base.get_submodule(layer.module).register_forward_pre_hook(self._capture)
        self.upscale = layer.upscale
        self.head = nn.Sequential(
            nn.Conv2d(layer.num_feat, layer.num_feat, 3, 1, 1), nn.ELU(),
            nn.Conv2d(layer.num_feat, layer.num_feat, 3, 1, 1), nn.ELU(),
            nn.Conv2d(layer.num_feat, 3, 3, 1, 1), nn.ELU())
        self.feat: Tensor | None = None

    def _capture(self, module: nn.Module, args: tuple[Tensor]) -> None:
        self.feat = args[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sr, feat = get_sr_image(self.base(x)), self.feat
        self.feat = None
        return sr, self.head(F.interpolate(feat, scale_factor=self.upscale) if self.upscale > 1 else feat)


def build_reference_step(network: str, speed: Config) -> Callable[[Mapping[str, Tensor]], Any]:
    """An iteration of step 2 on a batch: both networks run completely, one of them without gradient."""
    trained, frozen = ReferenceNetwork(network).to(DEVICE), ReferenceNetwork(network).to(DEVICE).eval()
    if speed.get('channels_last'):
        trained, frozen = (net.to(memory_format=torch.channels_last) for net in (trained, frozen))
    optimizer = torch.optim.Adam(trained.parameters(), 1e-4)

    def step(batch: Mapping[str, Tensor]) -> tuple[float, Tensor]:
        lq, gt = batch['lq'].to(DEVICE), batch['gt'].to(DEVICE)
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled='amp' in speed):
            with torch.no_grad():
                _, s = frozen(lq)
            sr, unused = trained(lq)
        s = s.float()
        weight = s - s.amin((2, 3), keepdim=True) + 1
        loss = (weight * (gt - sr.float()).abs()).mean()
        loss.backward()
        optimizer.step()
        return loss.item(), unused

    return step


def build_reference_test(network: str) -> Callable[[Tensor], Tensor]:
    nets = [ReferenceNetwork(network).to(DEVICE).eval() for _ in range(2)]

    @torch.no_grad()
    def test(lq: Tensor) -> Tensor:
        (sr, _), _ = (net(lq.to(DEVICE)) for net in nets)
        return sr

    return test


# ---- this package, with the options of a yml

def build_udl_model(network: str, stage: str, loss: str, speed: Config, is_train: bool = True,
                    changes: Config | None = None, val: Config | None = None) -> Any:
    """The UDLModel of a training or test yml."""
    base = {**get_base(network), **(changes or {})}
    opt: Config = {
        'name': 'benchmark', 'model_type': 'UDLModel', 'scale': SCALE, 'num_gpu': int(DEVICE.type == 'cuda'),
        'dist': False, 'rank': 0, 'world_size': 1, 'is_train': is_train, 'datasets': {},
        'network_g': wrapped_config(stage, base, detach_features=loss == 'JointUDL'),
        'path': {'pretrain_network_g': None},
        'train': {'total_iter': 10**6, 'optim_g': {'type': 'Adam', 'lr': 1e-4}, 'pixel_opt': {'type': loss}, **speed,
                  'scheduler': {'type': 'MultiStepLR', 'milestones': [10**6], 'gamma': 0.5}},
        'val': {'save_img': False, 'suffix': None, **(val or {}), 'metrics': build_metrics(SCALE)},
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        opt['path'].update(dict.fromkeys(('models', 'training_states', 'visualization'), folder))  # nothing is saved
        if stage == 'step 2' or not is_train:
            start = wrapped_config('step 1' if stage == 'step 2' else stage, base)
            opt['path']['pretrain_network_g'] = f'{folder}/start.pth'
            save_checkpoint(f'{folder}/start.pth', {'params': build_network(start).state_dict()}, start)
        return build_model(opt)


def build_step(network: str, method: str, speed: Config,
               changes: Config | None = None) -> Callable[[Mapping[str, Tensor]], None]:
    """An iteration of one of METHODS on a batch."""
    stage, loss, cached = METHODS[method]
    model = build_udl_model(network, stage, loss, speed, changes=changes)

    def step(batch: Mapping[str, Tensor]) -> None:
        model.feed_data({name: tensor for name, tensor in batch.items() if cached or name != 'log_var'})
        model.optimize_parameters(10**6 - 1)  # not one in which the training logs

    return step


def list_steps(network: str, labels: Sequence[str] = tuple(SPEED)) -> dict[str, Callable]:
    """Row of the table to the function that builds its iteration."""
    rows: dict[str, Callable] = {REFERENCE: functools.partial(build_reference_step, network, {})}
    for label in labels:
        speed = {**SPEED, **COMPILED}[label]
        if 'compile' not in speed:
            rows[f'{AUTHORS}, {label}'] = functools.partial(build_reference_step, network, speed)
        for method in METHODS:
            rows[f'{method}, {label}'] = functools.partial(build_step, network, method, speed)
    if network == 'DPDNN':  # it is slow, and its files in options/ use checkpointing
        rows = {name: make for name, make in rows.items() if name.endswith(('float32', 'bf16, channels_last'))}
        for method in METHODS:
            rows[f'{method}, checkpointing, bf16, channels_last'] = functools.partial(
                build_step, network, method, SPEED['bf16, channels_last'], {'checkpointing': True})
    return rows


# ---- measurements

def steps(network: str, size: Size, args: argparse.Namespace) -> str:
    """Seconds per iteration, and the ratio to the reference."""
    batch = build_batch(size)
    functions = {name: functools.partial(make(), batch) for name, make in list_steps(network, args.speeds).items()}
    rounds = max(3, args.rounds // 3) if network == 'DPDNN' else args.rounds
    times = seconds_in_turn(functions, rounds, repeats=10 if DEVICE.type == 'cuda' else 1)
    rows = [['iteration', 'seconds', 'iterations per second', 'ratio', 'middle half']
            + ['share of the peak'] * (DEVICE.type == 'cuda')]
    for name, values in times.items():
        seconds = statistics.median(values)
        rows.append([name, f'{seconds:.3f}', f'{1 / seconds:.2f}', *compute_ratio(values, times[REFERENCE])])
        if DEVICE.type == 'cuda':
            rows[-1].append(get_share_of_peak(functions[name], seconds, name))
    pairs = {name: name.replace('step 2, cached maps', 'plain, L1') for name in times if 'cached' in name}
    lines = ['- {}: {} ({}) of the time of {}.'.format(cached, *compute_ratio(times[cached], times[plain]), plain)
             for cached, plain in pairs.items()]
    return (f'{network} x{SCALE}, batch {size[0]}, LR patches of {size[1]}; ratio to "{REFERENCE}". {machine()}, '
            f'{rounds} rounds.\n\n{markdown_table(rows)}\n\n' + '\n'.join(lines))


def memory(network: str, size: Size, args: argparse.Namespace) -> str:
    """Peak memory of an iteration."""
    peaks = {name: peak_memory_of(_build_iterations, network, name, size) for name in list_steps(network, args.speeds)}
    rows = [['iteration', 'peak memory (MiB)', 'ratio']]
    for name, peak in peaks.items():
        rows.append([name, *(('-', '-') if None in (peak, peaks[REFERENCE]) else
                             (f'{peak / 2**20:.0f}', f'{peak / peaks[REFERENCE]:.2f}'))])
    return (f'{network} x{SCALE}, batch {size[0]}, LR patches of {size[1]}; in addition '
            f'to what the process had allocated before. {machine()}.\n\n{markdown_table(rows)}')


def _build_iterations(network: str, name: str, size: Size) -> tuple[Callable, Callable]:
    """A small iteration and a full one, for a new process."""
    step = list_steps(network, [*SPEED, *COMPILED])[name]()
    batch = build_batch(size)

    def run() -> None:
        for _ in range(6 if DEVICE.type == 'cuda' else 1):  # the last ones as a graph
            step(batch)

    return functools.partial(step, build_batch((1, 8))), run


def test(network: str, size: Size, args: argparse.Namespace) -> str:
    """Seconds per image."""
    lq = torch.rand(1, 3, *TEST_SIZE)

    def ours(val: Config | None = None) -> Callable[[], None]:
        model = build_udl_model(network, 'step 2', 'UDL', {}, is_train=False, val=val)

        def run() -> None:
            model.feed_data({'lq': lq})
            model.test()
        return run

    functions = {'as the authors run it, float32': functools.partial(build_reference_test(network), lq),
                 'step 2, float32': ours(), 'step 2, val: amp: bf16': ours({'amp': 'bf16'}),
                 'step 2 with maps, float32': ours({'save_uncertainty': True})}
    times = seconds_in_turn(functions, args.rounds, repeats=10 if DEVICE.type == 'cuda' else 1)
    rows = build_rows_per_image('test', times)
    return (f'{network} x{SCALE}, one LR image of {TEST_SIZE[1]} x {TEST_SIZE[0]}. {machine()}, {args.rounds} rounds'
            f'.\n\n{markdown_table(rows)}')


class RandomImages(list):
    """A validation set."""

    opt: ClassVar[Config] = {'name': 'random'}


def validation(network: str, size: Size, args: argparse.Namespace) -> str:
    """Seconds per image of a validation with PSNR and SSIM."""
    images = RandomImages(
        {'lq': torch.rand(3, *TEST_SIZE), 'lq_path': f'{number}.png',
         'gt': torch.rand(3, *(SCALE * side for side in TEST_SIZE))} for number in range(2))
    loader = torch.utils.data.DataLoader(images)

    def build(val: Config | None = None, test: Callable[[Tensor], Tensor] | None = None) -> Callable[[], None]:
        model = build_udl_model(network, 'step 2', 'UDL', {}, is_train=False, val=val)
        if test:
            model.test = lambda: setattr(model, 'output', test(model.lq))
        return functools.partial(model.validation, loader, 1, None)

    functions = {'network as the authors run it, float32': build(test=build_reference_test(network)),
                 'step 2, float32': build(), 'step 2, val: amp: bf16': build({'amp': 'bf16'})}
    logging.getLogger('basicsr').setLevel(logging.WARNING)  # hides the log of each validation
    times = seconds_in_turn(functions, max(3, args.rounds // 3))
    rows = build_rows_per_image('validation', times, len(images))
    return (f'{network} x{SCALE}, LR images of {TEST_SIZE[1]} x {TEST_SIZE[0]}, with PSNR and SSIM, which are computed '
            f'on the CPU. {machine()}.\n\n{markdown_table(rows)}')


def loading(network: str, size: Size, args: argparse.Namespace) -> str:
    """Seconds per iteration with batches from LMDBs, read by two processes, and with one fixed batch."""
    rows = [['iteration', 'sub-images', 'a fixed batch (s)', 'from LMDBs (s)', 'ratio', 'middle half']]
    items = [['item of the training set', *ITEMS]]
    folder = Path(tempfile.mkdtemp())
    try:
        hr = folder / 'photos'
        for name, photo in training_photos().items():  # padded by mirroring
            pad = [(0, max(960 - length, 0)) for length in photo.shape[:2]]
            atomic_write(hr / f'{name}.png', encode(np.pad(photo, [*pad, (0, 0)], 'symmetric')[:960, :960]))
        step1 = wrapped_config('step 1', get_base(network))
        save_checkpoint(folder / 'step1.pth', {'params': build_network(step1).state_dict()}, step1)
        for crop, compress in ((480, True), (240, True), (240, False)):
            out = folder / f'{crop}{compress}'
            prepare_train([hr], [SCALE], out, name='photos', crop=crop, step=crop // 2, compress=compress)
            sets = {'dataroot_gt': out / 'photos_train_HR_sub.lmdb',
                    'dataroot_lq': out / f'photos_train_LR_bicubic_X{SCALE}_sub.lmdb'}
            prepare_uncertainty(folder / 'step1.pth', *sets.values(), out / 'maps.lmdb', compress=compress)
            for row in ('plain, L1', 'step 2, cached maps'):
                cached = {'dataroot_uncertainty': out / 'maps.lmdb'} if 'cached' in row else {}
                fixed, real = time_loading(network, row, size, {**sets, **cached}, args.rounds)
                rows.append([f'{row}, bf16, channels_last', f'{crop} x {crop}, {"PNG" if compress else "BMP"}',
                             f'{statistics.median(fixed):.3f}',
                             f'{statistics.median(real):.3f}', *compute_ratio(real, fixed)])
                milliseconds = time_items(size, {**sets, **cached}, args.rounds)
                items.append([f'{crop} x {crop}, {"PNG" if compress else "BMP"}{", with map" * bool(cached)}',
                              *(f'{value:.2f}' for value in milliseconds)])
    finally:
        shutil.rmtree(folder)
    return (f'{network} x{SCALE}, batch {size[0]}, 2 workers; photos in LMDBs that are in memory. '
            f'{machine()}, {args.rounds} rounds of 10 iterations.\n\n{markdown_table(rows)}\n'
            f'Milliseconds per item, in one process, median of {args.rounds} rounds of 32 items in turn.\n\n'
            f'{markdown_table(items)}')


ITEMS = {'decoded each time': None, 'cache: host': 'host', 'cache: device': 'device'}  # name -> option cache


def time_items(size: Size, roots: Mapping[str, Path], rounds: int) -> list[float]:
    """Milliseconds per item, for each of ITEMS."""
    datasets = {name: build_dataset(dataset_options(size, roots, cache)) for name, cache in ITEMS.items()}
    times = seconds_in_turn({name: lambda data=data: [data[index % len(data)] for index in range(32)]
                             for name, data in datasets.items()}, rounds)
    return [1000 * statistics.median(seconds) / 32 for seconds in times.values()]


def dataset_options(size: Size, roots: Mapping[str, Path], cache: str | None = None) -> Config:
    """Options of the training set in these LMDBs."""
    plain = 'PairedImageUncertaintyDataset' if 'dataroot_uncertainty' in roots else 'PairedImageDataset'
    return {'name': 'photos', 'type': 'PairedImageCachedDataset' if cache else plain,
            **({'cache': cache} if cache else {}), **{key: str(path) for key, path in roots.items()},
            'io_backend': {'type': 'lmdb'}, 'phase': 'train', 'scale': SCALE, 'gt_size': SCALE * size[1],
            'use_hflip': True, 'use_rot': True, 'num_worker_per_gpu': 2, 'batch_size_per_gpu': size[0]}


def time_loading(network: str, method: str, size: Size, roots: Mapping[str, Path], rounds: int,
                 iterations: int = 10) -> tuple[list[float], list[float]]:
    """Seconds per iteration in each round: with a fixed batch, and with loaded batches."""
    stage, loss, _ = METHODS[method]
    dataset_opt = dataset_options(size, roots)
    data = build_dataset(dataset_opt)
    needed = (rounds + 2) * iterations * size[0]
    sampler = EnlargedSampler(data, 1, 0, -(-needed // len(data)))
    loader = CPUPrefetcher(build_dataloader(data, dataset_opt, num_gpu=0, sampler=sampler, seed=0))
    model = build_udl_model(network, stage, loss, SPEED['bf16, channels_last'])
    first = loader.next()

    def iterate(batches: Callable[[], Mapping[str, Tensor]]) -> None:
        for _ in range(iterations):
            model.feed_data(batches())
            model.optimize_parameters(1)

    times = seconds_in_turn({'fixed': lambda: iterate(lambda: first), 'real': lambda: iterate(loader.next)}, rounds)
    fixed, real = ([seconds / iterations for seconds in times[name]] for name in ('fixed', 'real'))
    return fixed, real


PARTS = {part.__name__: part for part in (steps, memory, test, validation, loading)}


def build_rows_per_image(title: str, times: Mapping[str, Sequence[float]], images: int = 1) -> list[list[str]]:
    """A table of seconds for each image; ratios are to the first row."""
    reference = next(iter(times.values()))
    rows = [[title, 'seconds an image', 'ratio', 'middle half']]
    return rows + [[name, f'{statistics.median(values) / images:.4f}', *compute_ratio(values, reference)]
                   for name, values in times.items()]


def compute_ratio(values: Sequence[float], reference: Sequence[float]) -> tuple[str, str]:
    """Median over the rounds, and first and third quartile."""
    ratios = [value / base for value, base in zip(values, reference)]
    low, middle, high = statistics.quantiles(ratios, n=4, method='inclusive')
    return f'{middle:.2f}', f'{low:.2f} to {high:.2f}'


def get_share_of_peak(step: Callable, seconds: float, name: str) -> str:
    """The part of the GPU's dense bf16 peak that convolutions and matrix products reach."""
    peak = next((peak for card, peak in PEAKS.items() if card in torch.cuda.get_device_name()), None)
    if peak is None or 'compile' in name:
        return '-'
    with FlopCounterMode(display=False) as counter:
        step()
    return f'{counter.get_total_flops() / seconds / peak / 1e12:.1%}'


if __name__ == '__main__':
    sys.exit(main())
