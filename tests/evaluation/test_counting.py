"""The fast ways of counting against the obvious ones."""

from __future__ import annotations

import numpy as np
import pytest

from vss2.evaluation.confusion import JointHistogram
from vss2.evaluation.consistency import VideoConsistency, _count


def obvious_histogram(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    counts = np.zeros((256, 256), np.int64)
    np.add.at(counts, (labels.ravel(), predictions.ravel()), 1)
    return counts


@pytest.mark.parametrize("block", [1, 2, 16])
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (33, 47)])
def test_histogram_of_noise_and_of_flat_areas(block: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(block)
    maps = rng.integers(0, 256, (2, *size), np.uint8)
    labels, predictions = maps.repeat(block, 1).repeat(block, 2)[:, : size[0], : size[1]]
    histogram = JointHistogram()
    histogram.add(labels, predictions)
    counts = histogram.counts()
    assert counts.dtype == np.int64
    assert np.array_equal(counts, obvious_histogram(labels, predictions))


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 20])
def test_histogram_adds_up_frames_and_can_be_read_on_the_way(frames: int) -> None:
    rng = np.random.default_rng(frames)
    histogram, expected = JointHistogram(), np.zeros((256, 256), np.int64)
    for t in range(frames):
        block = 1 if t % 3 == 1 else 8
        maps = rng.integers(0, 256, (2, 5, 6), np.uint8).repeat(block, 1).repeat(block, 2)
        histogram.add(*maps)
        expected += obvious_histogram(*maps)
        if t == 4:
            assert np.array_equal(histogram.counts(), expected)
    assert np.array_equal(histogram.counts(), expected)


@pytest.mark.parametrize("lengths", [(8, 16), (1, 2, 3), (5,), (7, 12, 31)])
def test_windows_of_any_length(lengths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 4, (2, 40, 5, 7), np.uint8)
    # Long streaks, so that windows of all lengths have constant pixels.
    for t in range(1, 40):
        for maps in (labels, predictions):
            stays = rng.random((5, 7)) < 0.93
            maps[t][stays] = maps[t - 1][stays]
    predictions[:, :3] = labels[:, :3]
    video = VideoConsistency(3, lengths)
    for label, prediction in zip(labels, predictions, strict=True):
        video.update(label, prediction)
    for n in lengths:
        windows = video.windows(n)
        assert len(windows.constant) == len(windows.correct) == 41 - n
        for start in range(41 - n):
            truth, guess = labels[start : start + n], predictions[start : start + n]
            fixed, steady = (truth == truth[0]).all(0), (guess == guess[0]).all(0)
            valid = fixed & (truth[-1] < 3)
            right = (truth == guess).all(0) & valid
            assert windows.constant[start].tolist() == [(fixed & steady).sum(), fixed.sum()]
            assert windows.correct[start].tolist() == [right.sum(), valid.sum()]
    assert video.windows(max(lengths)).constant.any()


def test_bits_are_counted_alike_by_old_and_new_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = np.random.default_rng(0).integers(0, 256, 1000, np.uint8)
    expected = int(np.unpackbits(packed).sum())
    assert _count(packed) == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert _count(packed) == expected
