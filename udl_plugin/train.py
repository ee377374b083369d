"""Trains: `udl-train options/train_udl_step1.yml`. See --help."""
import sys
from os import path as osp

if not __package__:  # run as a file: import the package that it is in, not its modules as top-level ones
    sys.path[0] = osp.dirname(osp.dirname(osp.abspath(__file__)))

from udl_plugin.cli.train import main as run


def main() -> int:
    return run(is_train=True)


if __name__ == '__main__':
    sys.exit(main())
