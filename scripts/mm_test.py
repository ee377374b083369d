"""Tests under mmengine, from a checkout without install: see `udl_plugin/mm/launch.py`."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from udl_plugin.mm.launch import test

if __name__ == '__main__':
    sys.exit(test())
