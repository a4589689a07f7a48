"""Deterministic weights and inputs of the parity fixtures, and access to the recorded numbers.

A parity fixture holds no weights. It holds the parameter names and shapes of a published
checkpoint layout and the numbers that the published implementation computed from weights that a
rule derives from those names. Filling the same names with the same rule and computing the same
numbers shows that a checkpoint of that layout loads whole and that the forward pass is the
published one. `numpy.random.RandomState` is frozen: the stream of a seed never changes between
NumPy versions.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

FIXTURE_ROOT = Path(__file__).resolve().parents[2] / "tests" / "parity" / "data"


def filled(name: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Values for the float tensor `name` of `shape`, float32.

    Norm scales are near 1, running variances positive, biases small and matrices scaled by
    1/sqrt(fan_in), so that activations stay of order one through a deep net.
    """
    rng = np.random.RandomState((zlib.crc32(name.encode()) ^ (seed * 2654435761)) & 0xFFFFFFFF)
    shape = tuple(shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    x = rng.standard_normal(shape)
    if leaf == "running_mean" or leaf.endswith("bias"):
        return (0.1 * x).astype(np.float32)
    if len(shape) <= 1:
        return (1.0 + 0.1 * x).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    return (x / np.sqrt(max(fan_in, 1))).astype(np.float32)


def filled_state_dict(
    layout: Mapping[str, Sequence[int]], seed: int = 0
) -> dict[str, torch.Tensor]:
    """A state dict for `layout`, a map of name to shape."""
    return {
        name: torch.from_numpy(filled(name, shape, seed)).reshape(tuple(shape))
        for name, shape in layout.items()
    }


def image_clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth moving pattern plus noise: uint8 RGB frames, shape (frames, height, width, 3)."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.empty((frames, height, width, 3), np.uint8)
    phase = rng.uniform(0, 6.28, (3, 4))
    freq = rng.uniform(0.02, 0.12, (3, 4, 2))
    speed = rng.uniform(-3, 3, (4, 2))
    for t in range(frames):
        for c in range(3):
            value = np.zeros((height, width))
            for k in range(4):
                fx, fy = freq[c, k]
                vx, vy = speed[k]
                value += np.sin(fx * (x + vx * t) + fy * (y + vy * t) + phase[c, k])
            value = 127.5 + 30 * value + rng.uniform(-8, 8, (height, width))
            out[t, :, :, c] = np.clip(np.rint(value), 0, 255)
    return out


def synthetic_label(frames: int, height: int, width: int, item: int = 0) -> np.ndarray:
    """The fixtures' label rule for batch item `item`: int64 (frames, height, width), 255 = void."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    label = (11 * (y // 8) + 29 * (x // 12) + 3 * t + 5 * item) % 128
    return np.where(label >= 124, 255, label).astype(np.int64)


def load_fixture(name: str, root: Path = FIXTURE_ROOT) -> tuple[dict[str, Any], dict[str, Any]]:
    """The description (json) and the arrays (npz, {} when there is none) of fixture `name`."""
    description = json.loads((root / f"{name}.json").read_text())
    arrays = root / f"{name}.npz"
    if not arrays.exists():
        return description, {}
    with np.load(arrays) as npz:
        return description, dict(npz)


def assert_recorded(
    description: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    key: str,
    value: torch.Tensor,
    tolerance: float = 2e-5,
) -> None:
    """Compare `value` with the fixture's `<key>.slice` and `<key>.stats`.

    The tolerance is relative to the largest absolute value of the whole recorded tensor.
    """
    value = value.detach().float()
    what = description["outputs"][f"{key}.slice"]
    starts = re.search(r"strided slice \[([^\]]*)\]", what)
    assert starts is not None, what
    index = tuple(
        slice(*(int(part) if part else None for part in term.strip().split(":")))
        for term in starts[1].split(",")
    )
    stats = arrays[f"{key}.stats"]
    expected = torch.from_numpy(arrays[f"{key}.slice"])
    error = (value[index] - expected).abs().max().item()
    limit = tolerance * float(stats[2])
    assert error <= limit, f"{key}: largest difference {error:.3g}, allowed {limit:.3g}"
    actual = torch.stack([value.mean(), value.std(unbiased=False), value.abs().max()])
    difference = (actual - torch.from_numpy(stats)).abs().max().item()
    assert difference <= limit, f"{key}: mean, deviation or maximum off by {difference:.3g}"
