"""Segment frames from a folder, video, camera or pipe: `python tools/predict.py --help`."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("vss2") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vss2.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
