"""Tests, through BasicSR's test_pipeline: `udl-test -opt options/test_udl.yml`.

The arguments are BasicSR's: -opt, --launcher. Results go below the current folder.
And these:

    --force_yml val:save_img=false name=trial
        Options in place of those in the yml: keys with `:` between them, `=`, and a value as YAML reads it, though 1e-4
        is a number and none is ~. The last key may be new. Nothing in it is run, unlike with BasicSR.
    --no-check
        Lets all options pass, as BasicSR does; without it, whatever is wrong with the yml, the data and the checkpoint
        is told at once, before anything is made. The yml is read safely even so.
"""
import sys
from os import path as osp

if not __package__:  # run as a file: import the package that the file is in, and not its modules as top-level ones
    sys.path[0] = osp.dirname(osp.dirname(osp.abspath(__file__)))

from udl_plugin.training.run import run


def main():
    return run('basicsr.test', 'test_pipeline')


if __name__ == '__main__':
    sys.exit(main())
