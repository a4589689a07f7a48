"""Consistency over time of one video, in one pass and without keeping its frames.

VC_n is the video consistency of VSPW (Miao et al., CVPR 2021): of the pixels whose label stays the
same over n frames, the share whose prediction stays the same too, right or wrong. `consistency` is
our label-aware form: the share that is predicted right in all n frames, void left out.

Whether a pixel kept its value since the frame before is one bit; eight pixels make a byte. The
window of n frames that ends at frame t is constant where the last n - 1 of these bits are all set.
Their conjunction over n steps is built from shorter ones, so a frame costs few operations.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from vss2.layers.label_maps import equal_bits


class WindowCounts(NamedTuple):
    """Windows of one length in order of their end, int64 (windows, 2) each: [kept, of]."""

    constant: np.ndarray
    correct: np.ndarray


def window_ratios(counts: np.ndarray) -> np.ndarray:
    """float64 (windows,) of int64 (windows, 2): kept / of, nan where no pixel qualifies."""
    out = np.full(len(counts), np.nan)
    np.divide(counts[:, 0], counts[:, 1], out=out, where=counts[:, 1] > 0)
    return out


class _Streak:
    """Packed bits of the last frames, and where all of the last `n` of them are set.

    The conjunction over 2m bits is that over m bits now and m frames ago; other lengths are made
    of two overlapping ones. Kept are the conjunctions over powers of two of recent frames.

    Args:
        longest: the largest n that will be asked for.
    """

    def __init__(self, longest: int) -> None:
        self._history: list[deque[np.ndarray]] = []
        size = 1
        while size <= longest:
            # The conjunction over `size` bits is needed up to `size` frames back.
            self._history.append(deque(maxlen=size + 1))
            size *= 2

    def push(self, bits: np.ndarray) -> None:
        """Take the next frame's packed bits."""
        for level, history in enumerate(self._history):
            if level:
                shorter, back = self._history[level - 1], 1 << (level - 1)
                if len(shorter) <= back:
                    return
                bits = shorter[-1] & shorter[-1 - back]
            history.append(bits)

    def last(self, n: int) -> np.ndarray:
        """Where the last n bits are all set; n frames must have come."""
        level = n.bit_length() - 1
        history, rest = self._history[level], n - (1 << level)
        return history[-1] & history[-1 - rest] if rest else history[-1]


class VideoConsistency:
    """Streaks of one video's labels, predictions and correct predictions.

    Memory is two uint8 maps of the frame size and, for windows of up to 16 frames, about 90 maps
    of one bit a pixel, whatever the video's length.

    Args:
        num_classes: label ids from here on have no class and count as void for `correct`.
        lengths: the window lengths n, at least 1.
    """

    def __init__(self, num_classes: int, lengths: tuple[int, ...]) -> None:
        self.num_classes = num_classes
        self.lengths = lengths
        self.num_frames = 0
        self._last_label = self._last_prediction = np.empty((0, 0), np.uint8)
        longest = max(lengths)
        self._label, self._prediction = _Streak(longest - 1), _Streak(longest - 1)
        self._correct_streak = _Streak(longest)
        self._constant: dict[int, list[tuple[int, int]]] = {n: [] for n in lengths}
        self._correct: dict[int, list[tuple[int, int]]] = {n: [] for n in lengths}

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W) of the frames; (0, 0) before the first."""
        return self._last_label.shape

    def update(self, label: np.ndarray, prediction: np.ndarray) -> None:
        """Take the next frame: uint8 (H, W) maps of the size of the frames before."""
        self._correct_streak.push(equal_bits(label, prediction))
        if self.num_frames:
            self._label.push(equal_bits(label, self._last_label))
            self._prediction.push(equal_bits(prediction, self._last_prediction))
        self._last_label, self._last_prediction = label, prediction
        self.num_frames += 1
        if self.num_frames >= min(self.lengths):
            self._count_windows(np.packbits(label < self.num_classes, bitorder="little"))

    def _count_windows(self, valid: np.ndarray) -> None:
        """Add the window that ends at the current frame, for each length that fits."""
        lengths = [n for n in self.lengths if n <= self.num_frames]
        # Padded with zeros to whole words, in which bits are counted.
        maps = np.zeros((len(lengths), 4, -(-len(valid) // 8) * 8), np.uint8)
        views = maps[..., : len(valid)]
        for n, (steady, fixed, right, possible) in zip(lengths, views, strict=True):
            if n == 1:
                fixed[:] = steady[:] = np.packbits(np.ones(self.size, bool), bitorder="little")
            else:
                fixed[:] = self._label.last(n - 1)
                np.bitwise_and(fixed, self._prediction.last(n - 1), out=steady)
            np.bitwise_and(fixed, valid, out=possible)
            np.bitwise_and(possible, self._correct_streak.last(n), out=right)
        counts = _count(maps)
        for n, (steady, fixed, right, possible) in zip(lengths, counts.tolist(), strict=True):
            self._constant[n].append((steady, fixed))
            self._correct[n].append((right, possible))

    def windows(self, n: int) -> WindowCounts:
        """Counts of all N - n + 1 windows of length `n` so far (none for N < n)."""
        return WindowCounts(
            np.array(self._constant[n], np.int64).reshape(-1, 2),
            np.array(self._correct[n], np.int64).reshape(-1, 2),
        )


_BITS = np.array([bin(value).count("1") for value in range(256)], np.uint8)


def _count(packed: np.ndarray) -> np.ndarray:
    """Number of set bits along the last axis of uint8 [..., 8 n]; int64 [...]."""
    if not hasattr(np, "bitwise_count"):  # NumPy 1
        return _BITS[packed].sum(axis=-1, dtype=np.int64)
    return np.bitwise_count(packed.view(np.uint64)).sum(axis=-1, dtype=np.int64)
