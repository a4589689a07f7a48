"""Whether a streaming session holds on to what it has seen."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
from pathlib import Path
from typing import Any

import torch

STATM = Path("/proc/self/statm")


def resident_mb() -> float:
    """Memory that this process holds, in MB of 10^6 bytes; Linux only.

    What the C library keeps for reuse after it was freed is given back first: how much that is
    changes from call to call by tens of MB.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory_growth(
    session: Any, count: int, size: tuple[int, int], after: int = 20, every: int = 5
) -> float:
    """By how many MB the memory held at the end exceeds the most held up to frame `after` (from 1).

    Held at the end is the median over the last quarter of the frames: what leaks stays, while what
    a single step needs for a moment, or another thread, does not count.

    Args:
        session: a fresh `VideoSession`; it is asked for labels.
        count: frames of moving noise to take, more than `after`.
        size: (H, W) of the frames.
        every: look at the memory after every so many frames.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    early: list[float] = []
    end: list[float] = []
    for index in range(count):
        session.step(noise.roll((index, 3 * index), (1, 2)), labels_only=True)
        if (index + 1) % every:
            continue
        if index < after:
            early.append(resident_mb())
        elif index >= count - count // 4:
            end.append(resident_mb())
    return statistics.median(end) - max(early)
