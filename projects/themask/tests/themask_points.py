"""Inputs and point draws of the THE-Mask fixtures, by their names."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch


def generator(name: str, seed: int) -> np.random.RandomState:
    return np.random.RandomState((zlib.crc32(name.encode()) ^ (seed * 2654435761)) & 0xFFFFFFFF)


def normal(name: str, shape: Sequence[int], seed: int) -> torch.Tensor:
    values = generator(name, seed).standard_normal(tuple(shape))
    return torch.from_numpy(values.astype(np.float32))


class RecordedPoints:
    """Draws points as the fixtures' rule says, and remembers what was asked for.

    Args:
        seed: of the fixture.
        prefix: what stands behind "points." in the fixture's names, such as "step0.".
    """

    def __init__(self, seed: int, prefix: str = ""):
        self.seed = seed
        self.prefix = prefix
        self.used: list[tuple[str, list[int]]] = []

    def __call__(self, name: str, rows: int, points: int, device: torch.device) -> torch.Tensor:
        # The plain criterion of Mask2Former has one branch and does not name it.
        name = name.replace(".item", ".video")
        if name.startswith("points.loss.") and name.split(".")[2] not in ("video", "frame"):
            name = name.replace("points.loss.", "points.loss.video.")
        name = name.replace("points.", f"points.{self.prefix}", 1)
        shape = [rows, points, 2]
        self.used.append((name, shape))
        values = generator(name, self.seed).random_sample(tuple(shape))
        return torch.from_numpy(values.astype(np.float32)).to(device)
