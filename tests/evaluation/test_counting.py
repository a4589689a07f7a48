"""The fast ways of counting against the obvious ones."""

from __future__ import annotations

import numpy as np
import pytest

from vss2.evaluation.consistency import VideoConsistency, _count


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
