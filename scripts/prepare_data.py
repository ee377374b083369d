"""`udl-prepare` from a checkout: python scripts/prepare_data.py train --help"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from udl_plugin.cli.prepare_data import main

if __name__ == '__main__':
    sys.exit(main())
