"""Tests, through BasicSR's test_pipeline: `udl-test -opt options/test_udl.yml`.

The arguments are BasicSR's: -opt, --launcher, --force_yml. Results go below the current folder.
"""
import sys
from os import path as osp

if not __package__:  # run as a file: import the package that the file is in, and not its modules as top-level ones
    sys.path[0] = osp.dirname(osp.dirname(osp.abspath(__file__)))

from udl_plugin.entry import run


def main():
    return run('basicsr.test', 'test_pipeline')


if __name__ == '__main__':
    sys.exit(main())
