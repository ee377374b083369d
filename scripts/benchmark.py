"""What training and testing cost, against the authors' way: python scripts/benchmark.py [--help]. `make bench`.

All is measured in turn, in rounds; a ratio is the median over the rounds, the middle half of them beside it. On the
CPU, or on the GPU where there is one. Writes DIR/steps_NETWORK.md and so on, and prints them.
"""
import argparse
import contextlib
import functools
import itertools
import logging
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.data.prefetch_dataloader import CPUPrefetcher
from basicsr.models import build_model
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from udl_plugin.archs.build import build_network
from udl_plugin.archs.feature_hook import find_feature_layer
from udl_plugin.archs.wrapping import wrapped_config
from udl_plugin.checkpoints.state_dict import save_checkpoint
from udl_plugin.cli.common import positive_int
from udl_plugin.data.lmdb_io import encode
from udl_plugin.inference.cost import machine, peak_memory_of, seconds_in_turn
from udl_plugin.prepare.datasets import prepare_train
from udl_plugin.prepare.demo_data import training_photos
from udl_plugin.prepare.uncertainty_maps import prepare_uncertainty
from udl_plugin.studies.report import markdown_table
from udl_plugin.utils.atomic_io import atomic_write

SCALE = 4
RGB = {'num_in_ch': 3, 'num_out_ch': 3, 'upscale': SCALE}
NETWORKS = {
    'EDSR-S': {'type': 'EDSR', **RGB, 'num_feat': 64, 'num_block': 16, 'res_scale': 0.1, 'rgb_mean': [0, 0, 0]},
    'DPDNN': {'type': 'DPDNN', **RGB, 'num_feat': 64, 'num_step': 6},
    'tiny': {'type': 'EDSR', **RGB, 'num_feat': 8, 'num_block': 2},  # for the benchmark's own test
}
LAST = {'EDSR': 'upsample', 'DPDNN': 'denoiser.conv_last'}  # what the features enter that the variance head takes
SPEED = {
    'float32': {},
    'channels_last': {'channels_last': True},
    'bf16': {'amp': 'bf16'},
    'bf16, channels_last': {'amp': 'bf16', 'channels_last': True},
}
COMPILED = {'bf16, channels_last, compile': {'amp': 'bf16', 'channels_last': True, 'compile': True}}
KINDS = {  # of the network, the loss, and whether its maps are in the batch
    'plain, L1': ('plain', 'L1Loss', False),
    'step 1 (ESU)': ('step 1', 'ESU', False),
    'step 2': ('step 2', 'UDL', False),
    'step 2, cached maps': ('step 2', 'UDL', True),
}
AUTHORS = 'step 2 as the authors run it'
REFERENCE = f'{AUTHORS}, float32'
TEST_SIZE = (128, 128)  # of the LR image
# dense bf16 TFLOP/s, from NVIDIA's data sheets
PEAKS = {'H100 PCIe': 756, 'H100': 989, 'H200': 989, 'A100': 312, 'L40S': 362, 'RTX 4090': 165, 'RTX 3090': 71}
DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def main(argv=None):
    args = parse(argv)
    on_gpu = DEVICE.type == 'cuda'
    for network, tf32, batch in itertools.product(args.networks, (False, True) if on_gpu else (False,),
                                                  args.batch or ((16, 64) if on_gpu else (4,))):
        if network == 'DPDNN' and not (on_gpu or args.batch):
            batch = 1
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True  # as BasicSR has it
        size = (batch, args.patch)
        name = network + (f'_batch{batch}_tf32_{"on" if tf32 else "off"}' if on_gpu else '')
        for part in args.parts:
            if part in args.only(network):
                print(f'{name}: {part} ...', file=sys.stderr, flush=True)
                text = PARTS[part](network, size, args)
                atomic_write(Path(args.out, f'{part}_{name}.md'), (text + '\n').encode())
                print(text, end='\n\n', flush=True)
    return 0


def parse(argv=None):
    parser = argparse.ArgumentParser(prog='benchmark.py', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--networks', nargs='+', choices=NETWORKS, default=['EDSR-S', 'DPDNN'], help='(EDSR-S DPDNN)')
    add('--parts', nargs='+', choices=PARTS, default=list(PARTS), help='(all)')
    add('--rounds', type=positive_int, default=9, metavar='N', help='(%(default)s)')
    add('--batch', type=positive_int, nargs='+', metavar='N', help='(4; on a GPU 16 and 64; of DPDNN on the CPU, 1)')
    add('--patch', type=positive_int, default=48, metavar='N', help='side of the LR patches (%(default)s)')
    add('--compile', action='store_true', help='also with compile: true')
    add('--out', default='results/benchmark', metavar='DIR', help='(%(default)s)')
    args = parser.parse_args(argv)
    args.only = lambda network: ('steps', 'memory') if network == 'DPDNN' else tuple(PARTS)
    return args


def batch_of(size):
    """LR, GT and maps of random images."""
    number, side = size
    generator = torch.Generator().manual_seed(0)
    lq, gt, log_var = (torch.rand(number, 3, factor * side, factor * side, generator=generator)
                       for factor in (1, SCALE, SCALE))
    return {'lq': lq, 'gt': gt, 'log_var': log_var}


# ---- the authors' way

class Whole(nn.Module):
    """A network with its variance head: always all of both, the head as the authors' code has it."""

    def __init__(self, network):
        super().__init__()
        section = NETWORKS[network]
        self.plain, place = build_network(section), find_feature_layer(build_network(section), LAST[section['type']])
        self.plain.get_submodule(LAST[section['type']]).register_forward_pre_hook(self.keep)
        self.upscale = place.upscale
        self.head = nn.Sequential(
            nn.Conv2d(place.num_feat, place.num_feat, 3, 1, 1), nn.ELU(),
            nn.Conv2d(place.num_feat, place.num_feat, 3, 1, 1), nn.ELU(),
            nn.Conv2d(place.num_feat, 3, 3, 1, 1), nn.ELU())

    def keep(self, module, args):
        self.feat = args[0]

    def forward(self, x):
        sr, feat = self.plain(x), self.feat
        self.feat = None
        return sr, self.head(F.interpolate(feat, scale_factor=self.upscale) if self.upscale > 1 else feat)


def authors_step(network, speed):
    """An iteration of step 2, of a batch: both networks whole, one of them without gradient."""
    trained, frozen = Whole(network).to(DEVICE), Whole(network).to(DEVICE).eval()
    if speed.get('channels_last'):
        trained, frozen = (net.to(memory_format=torch.channels_last) for net in (trained, frozen))
    optimizer = torch.optim.Adam(trained.parameters(), 1e-4)

    def step(batch):
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


def authors_test(network):
    nets = [Whole(network).to(DEVICE).eval() for _ in range(2)]

    @torch.no_grad()
    def test(lq):
        (sr, _), _ = (net(lq.to(DEVICE)) for net in nets)
        return sr

    return test


# ---- ours, as a yml asks for it

def model_of(network, kind, loss, speed, is_train=True, changes=None, val=None):
    """The UDLModel of a training or test yml."""
    plain = {**NETWORKS[network], **(changes or {})}
    opt = {
        'name': 'benchmark', 'model_type': 'UDLModel', 'scale': SCALE, 'num_gpu': int(DEVICE.type == 'cuda'),
        'dist': False, 'rank': 0, 'world_size': 1, 'is_train': is_train, 'datasets': {},
        'network_g': wrapped_config(kind, plain), 'path': {'pretrain_network_g': None},
        'train': {'optim_g': {'type': 'Adam', 'lr': 1e-4}, 'pixel_opt': {'type': loss}, **speed,
                  'scheduler': {'type': 'MultiStepLR', 'milestones': [10**6], 'gamma': 0.5}},
        'val': {'save_img': False, 'suffix': None, **(val or {}),
                'metrics': {name: {'type': f'calculate_{name}', 'crop_border': SCALE, 'test_y_channel': True}
                            for name in ('psnr', 'ssim')}},
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        if kind == 'step 2' or not is_train:
            start = wrapped_config('step 1' if kind == 'step 2' else kind, plain)
            opt['path']['pretrain_network_g'] = f'{folder}/start.pth'
            save_checkpoint(f'{folder}/start.pth', {'params': build_network(start).state_dict()}, start)
        return build_model(opt)


def our_step(network, row, speed, changes=None):
    """An iteration of a row of KINDS, of a batch."""
    kind, loss, cached = KINDS[row]
    model = model_of(network, kind, loss, speed, changes=changes)

    def step(batch):
        model.feed_data({name: tensor for name, tensor in batch.items() if cached or name != 'log_var'})
        model.optimize_parameters(1)

    return step


def steps_of(network, compiled=False):
    """Row to the function that makes its iteration."""
    rows = {}
    for label, speed in {**SPEED, **(COMPILED if compiled else {})}.items():
        if 'compile' not in speed:
            rows[f'{AUTHORS}, {label}'] = functools.partial(authors_step, network, speed)
        for row in KINDS:
            rows[f'{row}, {label}'] = functools.partial(our_step, network, row, speed)
    if network == 'DPDNN':  # it takes long; and its files in options/ have checkpointing
        rows = {name: make for name, make in rows.items() if name.endswith(('float32', 'bf16, channels_last'))}
        for row in KINDS:
            rows[f'{row}, checkpointing, bf16, channels_last'] = functools.partial(
                our_step, network, row, SPEED['bf16, channels_last'], {'checkpointing': True})
    return rows


# ---- what is measured

def steps(network, size, args):
    """Seconds of an iteration, and its ratio to the reference."""
    batch = batch_of(size)
    functions = {name: functools.partial(make(), batch) for name, make in steps_of(network, args.compile).items()}
    rounds = max(3, args.rounds // 3) if network == 'DPDNN' else args.rounds
    times = seconds_in_turn(functions, rounds, repeats=10 if DEVICE.type == 'cuda' else 1)
    rows = [['iteration', 'seconds', 'iterations per second', 'ratio', 'middle half'] + ['share of the peak'] * (
        DEVICE.type == 'cuda')]
    for name, values in times.items():
        seconds = statistics.median(values)
        rows.append([name, f'{seconds:.3f}', f'{1 / seconds:.2f}', *ratio(values, times[REFERENCE])])
        if DEVICE.type == 'cuda':
            rows[-1].append(share_of_peak(functions[name], seconds, name))
    like = {name.replace('step 2, cached maps', 'plain, L1'): name for name in times if 'cached' in name}
    lines = ['- {}: {} ({}) of the time of {}.'.format(cached, *ratio(times[cached], times[plain]), plain)
             for plain, cached in like.items()]
    return (f'{network} x{SCALE}, batch {size[0]}, LR patches of {size[1]}; ratio to "{REFERENCE}". {machine()}, '
            f'{rounds} rounds{tf32()}.\n\n{markdown_table(rows)}\n\n' + '\n'.join(lines))


def memory(network, size, args):
    """Peak memory of an iteration."""
    peaks = {name: peak_memory_of(_iterations, network, name, size) for name in steps_of(network)}
    rows = [['iteration', 'peak memory (MiB)', 'ratio']]
    for name, peak in peaks.items():
        rows.append([name, *(('-', '-') if None in (peak, peaks[REFERENCE]) else
                             (f'{peak / 2**20:.0f}', f'{peak / peaks[REFERENCE]:.2f}'))])
    return (f'{network} x{SCALE}, batch {size[0]}, LR patches of {size[1]}; beyond what '
            f'the process took before. {machine()}{tf32()}.\n\n{markdown_table(rows)}')


def _iterations(network, name, size):
    """A small iteration and a whole one, in a process of its own."""
    step = steps_of(network)[name]()
    return functools.partial(step, batch_of((1, 8))), functools.partial(step, batch_of(size))


def test(network, size, args):
    """Seconds of an image."""
    lq = torch.rand(1, 3, *TEST_SIZE)

    def ours(val=None, **speed):
        model = model_of(network, 'step 2', 'UDL', speed, is_train=False, val=val)

        def run():
            model.feed_data({'lq': lq})
            model.test()
        return run

    functions = {'as the authors run it, float32': functools.partial(authors_test(network), lq),
                 'step 2, float32': ours(), 'step 2, val: amp: bf16': ours({'amp': 'bf16'}),
                 'step 2 with maps, float32': ours({'save_uncertainty': True})}
    times = seconds_in_turn(functions, args.rounds, repeats=10 if DEVICE.type == 'cuda' else 1)
    reference = next(iter(times.values()))
    rows = [['test', 'seconds an image', 'ratio', 'middle half']]
    rows += [[name, f'{statistics.median(values):.4f}', *ratio(values, reference)] for name, values in times.items()]
    return (f'{network} x{SCALE}, one LR image of {TEST_SIZE[1]} x {TEST_SIZE[0]}. {machine()}, {args.rounds} rounds'
            f'{tf32()}.\n\n{markdown_table(rows)}')


class Images(torch.utils.data.Dataset):
    """Random images, as a validation set has them."""

    def __init__(self, number=2):
        self.opt = {'name': 'random'}
        generator = torch.Generator().manual_seed(0)
        self.items = [{'lq': torch.rand(3, *TEST_SIZE, generator=generator), 'lq_path': f'{index}.png',
                       'gt': torch.rand(3, *(SCALE * side for side in TEST_SIZE), generator=generator)}
                      for index in range(number)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def validation(network, size, args):
    """Seconds of a validation with PSNR and SSIM, an image."""
    images = Images()
    loader = torch.utils.data.DataLoader(images)

    def run(val=None, replaced=None):
        model = model_of(network, 'step 2', 'UDL', {}, is_train=False, val=val)
        if replaced:
            model.test = lambda: setattr(model, 'output', replaced(model.lq))
        return functools.partial(model.validation, loader, 1, None)

    functions = {'network as the authors run it, float32': run(replaced=authors_test(network)),
                 'step 2, float32': run(), 'step 2, val: amp: bf16': run({'amp': 'bf16'})}
    with quiet():
        times = seconds_in_turn(functions, max(3, args.rounds // 3))
    reference = next(iter(times.values()))
    rows = [['validation', 'seconds an image', 'ratio', 'middle half']]
    rows += [[name, f'{statistics.median(values) / len(images):.3f}', *ratio(values, reference)]
             for name, values in times.items()]
    return (f'{network} x{SCALE}, LR images of {TEST_SIZE[1]} x {TEST_SIZE[0]}, with PSNR and SSIM, which are computed '
            f'on the CPU. {machine()}{tf32()}.\n\n{markdown_table(rows)}')


def loading(network, size, args):
    """Seconds of an iteration with batches from LMDBs, read by two processes, and with one batch that is there."""
    rows = [['iteration', 'sub-images', 'a fixed batch (s)', 'from LMDBs (s)', 'ratio', 'middle half']]
    folder = Path(tempfile.mkdtemp())
    try:
        hr = folder / 'photos'
        for name, photo in training_photos().items():  # enlarged by mirroring
            pad = [(0, max(960 - length, 0)) for length in photo.shape[:2]]
            atomic_write(hr / f'{name}.png', encode(np.pad(photo, [*pad, (0, 0)], 'symmetric')[:960, :960]))
        section = wrapped_config('step 1', NETWORKS[network])
        save_checkpoint(folder / 'step1.pth', {'params': build_network(section).state_dict()}, section)
        for crop, compress in ((480, True), (240, True), (240, False)):
            out = folder / f'{crop}{compress}'
            prepare_train([hr], [SCALE], out, name='photos', crop=crop, step=crop // 2, compress=compress)
            sets = {'dataroot_gt': out / 'photos_train_HR_sub.lmdb',
                    'dataroot_lq': out / f'photos_train_LR_bicubic_X{SCALE}_sub.lmdb'}
            prepare_uncertainty(folder / 'step1.pth', *sets.values(), out / 'maps.lmdb', compress=compress)
            for row in ('plain, L1', 'step 2, cached maps'):
                cached = {'dataroot_uncertainty': out / 'maps.lmdb'} if 'cached' in row else {}
                fixed, real = loading_of(network, row, size, {**sets, **cached}, args.rounds)
                rows.append([f'{row}, bf16, channels_last', f'{crop} x {crop}, {"PNG" if compress else "BMP"}',
                             f'{statistics.median(fixed):.3f}',
                             f'{statistics.median(real):.3f}', *ratio(real, fixed)])
    finally:
        shutil.rmtree(folder)
    return (f'{network} x{SCALE}, batch {size[0]}, 2 workers; photos in LMDBs that are in memory. '
            f'{machine()}, {args.rounds} rounds of 10 iterations{tf32()}.\n\n{markdown_table(rows)}')


def loading_of(network, row, size, roots, rounds, iterations=10):
    """Seconds of an iteration in each round: of a fixed batch, and of batches that are loaded."""
    batch, side = size
    kind, loss, _ = KINDS[row]
    section = {'name': 'photos', 'type': 'PairedImageUncertaintyDataset' if 'cached' in row else 'PairedImageDataset',
               **{key: str(path) for key, path in roots.items()}, 'io_backend': {'type': 'lmdb'}, 'phase': 'train',
               'scale': SCALE, 'gt_size': SCALE * side, 'use_hflip': True, 'use_rot': True,
               'num_worker_per_gpu': 2, 'batch_size_per_gpu': batch}
    data = build_dataset(section)
    needed = (rounds + 2) * iterations * batch
    sampler = EnlargedSampler(data, 1, 0, -(-needed // len(data)))
    loader = CPUPrefetcher(build_dataloader(data, section, num_gpu=0, sampler=sampler, seed=0))
    model = model_of(network, kind, loss, SPEED['bf16, channels_last'])
    first = loader.next()

    def iterate(batches):
        for _ in range(iterations):
            model.feed_data(batches())
            model.optimize_parameters(1)

    times = seconds_in_turn({'fixed': lambda: iterate(lambda: first), 'real': lambda: iterate(loader.next)}, rounds)
    return ([seconds / iterations for seconds in times[name]] for name in ('fixed', 'real'))


PARTS = {part.__name__: part for part in (steps, memory, test, validation, loading)}


def ratio(values, reference):
    """Median over the rounds, and the quartiles."""
    ratios = [value / base for value, base in zip(values, reference)]
    low, middle, high = statistics.quantiles(ratios, n=4, method='inclusive')
    return f'{middle:.2f}', f'{low:.2f} to {high:.2f}'


def share_of_peak(step, seconds, name):
    """Of the card's dense bf16 peak, what convolutions and products of matrices take."""
    peak = next((peak for card, peak in PEAKS.items() if card in torch.cuda.get_device_name()), None)
    if peak is None or 'compile' in name:
        return '-'
    with FlopCounterMode(display=False) as counter:
        step()
    return f'{counter.get_total_flops() / seconds / peak / 1e12:.1%}'


def tf32():
    return f', TF32 {"on" if torch.backends.cudnn.allow_tf32 else "off"}' if DEVICE.type == 'cuda' else ''


@contextlib.contextmanager
def quiet():
    """Upstream's log of each validation is not wanted."""
    logger = logging.getLogger('basicsr')
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


if __name__ == '__main__':
    sys.exit(main())
