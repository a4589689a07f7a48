"""The counting of label maps, in C++ and in NumPy, against the obvious way."""

from __future__ import annotations

import numpy as np
import pytest

from vss2.layers import label_maps
from vss2.layers.extension import missing_reason

SIZES = [(1, 1), (1, 37), (33, 47)]


@pytest.fixture(params=["compiled", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way of counting."""
    if request.param == "numpy":
        monkeypatch.setattr(label_maps, "_library", lambda: None)
    elif reason := missing_reason(label_maps.NAME, label_maps.SOURCES):
        pytest.skip(reason)


def two_maps(rng: np.random.Generator, size: tuple[int, int], block: int) -> np.ndarray:
    maps = rng.integers(0, 256, (2, *size), np.uint8).repeat(block, 1).repeat(block, 2)
    return np.ascontiguousarray(maps[:, : size[0], : size[1]])


@pytest.mark.parametrize("block", [1, 2, 16])
@pytest.mark.parametrize("size", SIZES)
def test_histograms_of_noise_and_flat_areas_add_up(
    way: None, block: int, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(block)
    counts, expected = np.zeros((2, 256, 256), np.int64)
    for _ in range(3):
        labels, predictions = two_maps(rng, size, block)
        label_maps.add_joint_histogram(labels, predictions, counts)
        np.add.at(expected, (labels.ravel(), predictions.ravel()), 1)
        assert np.array_equal(counts, expected)


@pytest.mark.parametrize("size", SIZES)
def test_bits_say_where_maps_are_equal(way: None, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    one, other = two_maps(rng, size, 1)
    same = rng.random(size) < 0.6
    other[same] = one[same]
    bits = label_maps.equal_bits(one, other)
    assert bits.shape == (-(-one.size // 8),)
    unpacked = np.unpackbits(bits, bitorder="little")
    assert np.array_equal(unpacked[: one.size].reshape(size), one == other)
    assert not unpacked[one.size :].any()
