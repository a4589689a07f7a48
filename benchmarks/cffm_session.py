"""CFFM at 480x853, labels out: the session of vss2 against the published way.

    python benchmarks/cffm_session.py --sizes b1 b2 b5 --threads 1 2

Weights are random with norms that change what they see, which costs the same time as trained
ones. Labels of both ways must be equal wherever the two best classes are not as good as equal.
"""

from __future__ import annotations

from published_cffm import published_labels
from window_session import build, run

from vss2.projects.cffm.model import CFFM

DEPTHS = {"b0": 1, "b1": 2, "b2": 2, "b5": 4}
WANTED = {1: {"b1": 2.8, "b2": 3.0, "b5": 3.2}, 2: {"b1": 2.5, "b2": 2.7, "b5": 2.8}}


def build_size(size: str) -> CFFM:
    return build(CFFM, size, focal_depth=DEPTHS[size])


if __name__ == "__main__":
    run(__doc__, "CFFM", build_size, published_labels, WANTED)
