"""`udl-convert` from a checkout: python scripts/convert_checkpoint.py --help"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from udl_plugin.cli.convert_checkpoint import main

if __name__ == '__main__':
    sys.exit(main())
