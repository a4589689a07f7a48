"""Train or evaluate the model of a config: `python tools/train_net.py --config-file ...`."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("vss2") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vss2.cli.train_net import main

if __name__ == "__main__":
    sys.exit(main())
