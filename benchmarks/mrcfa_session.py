"""MRCFA at 480x853, labels out: the session of vss2 against the published way.

    python benchmarks/mrcfa_session.py --sizes b1 b2 b5 --threads 1 2

Weights are random with norms that change what they see, which costs the same time as trained
ones. Labels of both ways must be equal wherever the two best classes are not as good as equal.
"""

from __future__ import annotations

from published_mrcfa import published_labels
from window_session import build, run

from vss2.projects.mrcfa import MRCFA

WANTED = {1: {"b1": 2.8, "b2": 3.0, "b5": 4.0}, 2: {"b1": 2.5, "b2": 2.7, "b5": 3.5}}


def build_size(size: str) -> MRCFA:
    published = {"b0": (0.8, 1), "b1": (0.5, 2)}
    keep_ratio, layers = published.get(size, (0.5, 1))
    return build(MRCFA, size, keep_ratio=keep_ratio, refinement_layers=layers)


if __name__ == "__main__":
    run(__doc__, "MRCFA", build_size, published_labels, WANTED)
