"""Speed and memory of a model: `python tools/benchmark.py --config-file ... --size 480 853`."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("vss2") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vss2.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
