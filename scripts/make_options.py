"""Generates options/train/, options/test/ and options/train_udl_one_run.yml from four files in options/:
python scripts/make_options.py

To change all of them, edit options/train_udl_step1.yml, train_udl_step2.yml, test_udl.yml (for the networks in the
package train/EDSR_XS/train_EDSR_XS_x4.yml) or this script; then run it. A test checks that they are up to date.
"""
from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

OPTIONS = Path(__file__).resolve().parents[1] / 'options'

# the options after `type` in network_g
EDSR = """\
  num_in_ch: 3
  num_out_ch: 3
  num_feat: {num_feat}
  num_block: {num_block}
  upscale: 4
  res_scale: 0.1
  img_range: 255.
  rgb_mean: [0, 0, 0]  # as in the authors' code; BasicSR's EDSR options have [0.4488, 0.4371, 0.4040]
"""
DPDNN = """\
  num_in_ch: 3
  num_out_ch: 3
  num_feat: 64
  num_step: 6
  upscale: 4
  img_range: 255.
  checkpointing: true  # a fraction of the memory, a third more training time, same results
"""
RCAN = """\
  backbone:
    type: RCAN
    num_in_ch: 3
    num_out_ch: 3
    num_feat: 64
    num_group: 10
    num_block: 20
    squeeze_factor: 16
    upscale: 4
    res_scale: 1
    img_range: 255.
    rgb_mean: [0.4488, 0.4371, 0.4040]
"""
NETWORKS = {
    'EDSR_S': ('EDSR', EDSR.format(num_feat=64, num_block=16), (2, 3, 4)),
    'EDSR': ('EDSR', EDSR.format(num_feat=256, num_block=32), (2, 3, 4)),
    'DPDNN': ('DPDNN', DPDNN, (2, 3, 4)),
    'RCAN': (None, RCAN, (4,)),  # as an example for any network of BasicSR
}
TITLES = {
    'udl_step1': """\
# UDL step 1, {network} x{scale} on DIV2K: a variance head, trained with the ESU loss, on the authors' schedule.
# The PSNR of this step is lower than with plain L1; step 2 improves it.
""",
    'udl_step2': """\
# UDL step 2, {network} x{scale} on DIV2K: trains a copy of step 1's network with an L1 loss that is weighted by the
# uncertainty of the frozen original. At test time only the copy runs, a plain {plain}.
""",
    'udl_one_run': """\
# UDL in one run, {network} x{scale} on DIV2K, for as many iterations as both steps together: an L1 loss, weighted by
# the uncertainty of the moment. The variance head learns on the side. At test time only the {plain} runs.
""",
    'l1': """\
# The baseline for UDL, {network} x{scale} on DIV2K: plain L1, for as many iterations as both steps together.
""",
    'test_udl': """\
# Tests step 2 of {network} x{scale} on the benchmarks. Saves SR images and uncertainty maps to results/.
""",
    'test_udl_one_run': """\
# Tests the one run of {network} x{scale} on the benchmarks. Saves SR images and uncertainty maps to results/.
""",
    'test_l1': """\
# Tests the L1 baseline of {network} x{scale} on the benchmarks. Saves SR images to results/.
""",
}
DETACHED = '  detach_features: true  # the head learns from the features and does not shape them\n'
LOSSES = {  # of trainings without steps
    'l1': '    type: L1Loss\n    loss_weight: 1.0\n    reduction: mean',
    'udl_one_run': """\
    type: JointUDL
    loss_weight: 1.0
    reduction: mean
    img_range: 255  # errors are scaled to 8-bit levels; with 1 the map saturates and the weights are all 1
    offset: 1.0  # weight of the most certain pixel of each image
    warmup: 500  # iterations without weights, while the variance head learns""",
}
SCHEMA = '# yaml-language-server: $schema='  # read by editors; scripts/make_reference.py writes the file
STEP_1, STEP_2, TEST = ('train_udl_step1', 'train_udl_step2', 'test_udl')


def main() -> None:
    for path, text in families():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')


def families() -> Iterator[tuple[Path, str]]:
    """Yields the path and the content of each file."""
    source = (OPTIONS / 'train/EDSR_XS/train_EDSR_XS_x4.yml').read_text(encoding='utf-8')
    for scale in (2, 3):
        text = set_scale(source, scale).replace('EDSR-XS x4', f'EDSR-XS x{scale}')
        yield OPTIONS / f'train/EDSR_XS/train_EDSR_XS_x{scale}.yml', text.replace('EDSR_XS_x4', f'EDSR_XS_x{scale}')
    for network, (arch, options, scales) in NETWORKS.items():
        for scale in scales:
            stem = f'{network}_x{scale}'
            files = [('train', 'udl_step1', STEP_1, 'Var'), ('train', 'udl_step2', STEP_2, 'Two'),
                     ('train', 'udl_one_run', STEP_1, 'Var'), ('test', 'udl', TEST, 'Two'),
                     ('test', 'udl_one_run', TEST, 'Var')]
            if arch:
                files += [('train', 'l1', STEP_1, ''), ('test', 'l1', TEST, '')]
            for phase, kind, source, step in files:
                path = OPTIONS / phase / network / f'{phase}_{stem}_{kind}.yml'
                title = TITLES[kind if phase == 'train' else f'test_{kind}']
                network_type = arch + step if arch else {'Var': 'WithVariance', 'Two': 'TwoStep'}[step]
                text = (OPTIONS / f'{source}.yml').read_text(encoding='utf-8')
                text = text[text.index('\nname:') + 1:]
                is_one_run = (phase, kind) == ('train', 'udl_one_run')
                text = set_network(text, network_type, DETACHED + options if is_one_run else options)
                text = set_names(text, phase, f'{stem}_{kind}')
                if phase == 'train' and kind in LOSSES:
                    text = set_loss(text, LOSSES[kind])
                if kind == 'l1':
                    text = re.sub(r'^  save_uncertainty: .*\n', '', text, flags=re.MULTILINE)
                text = set_scale(text, scale)
                text = title.format(network=network.replace('_', '-'), scale=scale, plain=arch or network) + text
                schema = f'schema/{phase}.json\n'
                yield path, f'{SCHEMA}../../{schema}{text}'
                if is_one_run and stem == 'EDSR_S_x4':
                    text = text.replace('name: EDSR_S_x4_', 'name: train_')
                    yield OPTIONS / 'train_udl_one_run.yml', f'{SCHEMA}{schema}{text}'


def set_network(text: str, network_type: str, options: str) -> str:
    note = '  # as in step 1\n' if '  # as in step 1' in text else ''
    return re.sub(r'^network_g:\n(?:  .*\n)+', lambda _: f'network_g:\n  type: {network_type}\n{note}{options}', text,
                  flags=re.MULTILINE)


def set_names(text: str, phase: str, name: str) -> str:
    """Sets the name of the experiment, and that of the experiment whose network it starts from."""
    before = {'udl_step2': 'udl_step1', 'udl': 'udl_step2'}
    text = re.sub(r'^name: \w+', f'name: {"test_" if phase == "test" else ""}{name}', text, flags=re.MULTILINE)
    network, kind = re.fullmatch(r'(\w+_x\d)_(\w+)', name).groups()
    return re.sub(r'experiments/\w+/', lambda _: f'experiments/{network}_{before.get(kind, kind)}/', text)


def set_loss(text: str, loss: str) -> str:
    """Sets the loss, and the schedule of one training that is as long as both steps."""
    text = re.sub(r'(?<=^  pixel_opt:\n).*?(?=\n\n)', lambda _: loss, text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r'milestones: .*', 'milestones: [65000]', text)
    return re.sub(r'total_iter: .*', 'total_iter: 130000', text)


def set_scale(text: str, scale: int) -> str:
    text = re.sub(r'^scale: .*', 'scale: 4', text, flags=re.MULTILINE)
    text = text.replace('gt_size: 192', f'gt_size: {48 * scale}')
    return re.sub(r'(_X|GTmod|LRbicx|^scale: |upscale: |crop_border: )4', rf'\g<1>{scale}', text, flags=re.MULTILINE)


if __name__ == '__main__':
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
