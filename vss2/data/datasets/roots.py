"""Where data sets lie on disk."""

from __future__ import annotations

import os
from pathlib import Path


def datasets_root() -> Path:
    """Folder that holds the data sets: `VSS2_DATASETS`, by default `./datasets`.

    The variable is read at every call, so that importing vss2 fixes nothing.
    """
    return Path(os.environ.get("VSS2_DATASETS") or "datasets").expanduser()
