"""`udl-study` from a checkout: python scripts/study.py --help"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from udl_plugin.cli.study import main

if __name__ == '__main__':
    sys.exit(main())
