"""Turn a checkpoint into another layout: `python tools/convert_checkpoint.py --input ...`."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("vss2") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vss2.cli.convert_checkpoint import main

if __name__ == "__main__":
    sys.exit(main())
