"""The commands `udl-mm-train` and `udl-mm-test`: mmengine's Runner. See udl_plugin/integrations/mmengine/launch.py."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from udl_plugin.cli.common import Parser, path_arg
from udl_plugin.cli.templates import add_template_options
from udl_plugin.training.launch_env import LAUNCHERS

TRAIN = """\
Trains a config of mmengine, with the options of OpenMMLab's tools.

  udl-mm-train options/mmengine/demo_udl_step1.py
  udl-mm-train --template edsr_s_x4_step1 > my_config.py
  torchrun --nproc_per_node=4 -m udl_plugin.cli.mm train my_config.py --launcher pytorch

A config is a Python file and is executed: take none from strangers.
"""
TEST = """\
Tests a checkpoint with a config of mmengine, with the options of OpenMMLab's tools.

  udl-mm-test options/mmengine/demo_udl_step2.py work_dirs/demo_udl_step2/iter_1200.pth

A config is a Python file and is executed: take none from strangers.
"""


def train(argv: Sequence[str] | None = None) -> int:
    """Runs udl-mm-train. Returns the exit status: 0, or 2 for an error that a user can fix."""
    return _launch('train', argv)


def test(argv: Sequence[str] | None = None) -> int:
    """Runs udl-mm-test. Returns the exit status: 0, or 2 for an error that a user can fix."""
    return _launch('test', argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m udl_plugin.cli.mm train|test ...`, which torchrun requires."""
    command, *others = (sys.argv[1:] if argv is None else argv) or ['']
    if command not in ('train', 'test'):
        print('usage: python -m udl_plugin.cli.mm train|test CONFIG ... (udl-mm-train, udl-mm-test)', file=sys.stderr)
        return 2
    return _launch(command, others)


def _launch(command: str, argv: Sequence[str] | None) -> int:
    args = parse(command, argv)
    try:
        import mmengine  # noqa: F401
    except ImportError:
        print(f"udl-mm-{command}: mmengine is not installed: pip install 'udl_plugin[mm]'", file=sys.stderr)
        return 2
    from udl_plugin.integrations.mmengine.launch import launch  # imports torch, which takes seconds
    return launch(command, args)


def parse(command: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments of udl-mm-train or udl-mm-test; exits with status 2 if they are wrong."""
    parser = Parser(f'udl-mm-{command}', TRAIN if command == 'train' else TEST)
    add = parser.add_argument
    add('config', type=path_arg, help='a Python file, such as options/mmengine/demo_udl_step1.py')
    if command == 'test':
        add('checkpoint', type=path_arg, help='a .pth file of mmengine or BasicSR')
    add('--work-dir', metavar='DIR', help="default: the config's, or work_dirs/CONFIG")
    add('--launcher', choices=LAUNCHERS, default='none', help='of distributed training (default: none)')
    add('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
        help='override options of the config, such as train_dataloader.batch_size=8')
    if command == 'train':
        add('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
            help='resume this checkpoint, or the last one in the work dir')
        add('--amp', action='store_true', help='bf16 autocast (GPU only)')
        add('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
        add_template_options(parser)
    return parser.parse_args(argv)


if __name__ == '__main__':
    sys.exit(main())
