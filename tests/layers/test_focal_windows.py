"""Window keys against positions worked out by hand."""

from __future__ import annotations

import torch

from vss2.layers.focal_windows import (
    OUTSIDE,
    PooledGrid,
    merge_windows,
    pad_to_windows,
    pool_windows,
    relative_index,
    split_windows,
    surround_positions,
    window_keys,
)

GRIDS = (PooledGrid(1, 5), PooledGrid(1, 7), PooledGrid(2, 5), PooledGrid(3, 3))
CPU = torch.device("cpu")


def test_surround_lists_four_shifted_squares_without_the_window() -> None:
    positions = surround_positions(7, 3)
    assert positions.shape == (4 * 33, 2)
    assert ((positions < 0) | (positions > 6)).any(dim=1).all()
    # The first square begins right of the window at row 3, the last one at its upper left.
    assert positions[0].tolist() == [3, 7]
    assert positions[32].tolist() == [9, 9]
    assert positions[99].tolist() == [-3, -3]
    assert len({tuple(p) for p in positions.tolist()}) == 120


def test_relative_index_counts_from_the_corners() -> None:
    index = relative_index(7, 5)
    assert index.shape == (49, 25)
    for query, key in ((0, 0), (48, 0), (0, 24), (10, 7)):
        dy, dx = query // 7 - key // 5, query % 7 - key % 5
        assert index[query, key] == (dy + 4) * 11 + dx + 4
    assert index.min() == 0
    assert index.max() == 120


def test_keys_of_a_corner_window_wrap_and_reach_outside() -> None:
    index, mask = window_keys((2, 3), 7, 3, GRIDS, CPU)
    assert index.shape == mask.shape == (6, 49 + 132 + 25 + 49 + 25 + 9)
    height, width, cells = 14, 21, 6
    zero = height * width + cells * (1 + 1 + 4 + 9)
    assert index.max() == zero
    assert torch.equal(mask == OUTSIDE, index == zero)
    # Window 0: its own rows, then the surround; the upper left square wraps to the far corner.
    assert index[0, :8].tolist() == [0, 1, 2, 3, 4, 5, 6, 21]
    assert index[0, 49].item() == 3 * width + 7
    assert index[0, 49 + 99].item() == (height - 3) * width + width - 3
    # Of its 5x5 cells of the first grid, which has 2x3, the lower right 2x3 are inside.
    patch = index[0, 181:206].view(5, 5)
    first = height * width
    assert patch[2].tolist() == [zero, zero, first, first + 1, first + 2]
    assert patch[3].tolist() == [zero, zero, first + 3, first + 4, first + 5]
    assert (patch[[0, 1, 4]] == zero).all()
    # The last window looks at the grid of 3x3 cells per window around cell (3, 6) of 6x9.
    last = first + cells * (1 + 1 + 4)
    expected = [[last + y * 9 + x for x in (5, 6, 7)] for y in (2, 3, 4)]
    assert index[5, -9:].view(3, 3).tolist() == expected


def test_keys_can_be_made_under_inference_mode_and_trained_with_later() -> None:
    with torch.inference_mode():
        keys = window_keys((1, 4), 7, 3, GRIDS, CPU)
    tokens = torch.randn(int(keys.positions.max()) + 1, 2, requires_grad=True)
    tokens.index_select(0, keys.positions.flatten()).sum().backward()
    assert tokens.grad is not None


def test_windows_split_and_merge() -> None:
    x = torch.randn(2, 9, 15, 3)
    padded = pad_to_windows(x, 7)
    assert padded.shape == (2, 14, 21, 3)
    assert padded[:, 9:].abs().sum() == 0
    windows = split_windows(padded, 7)
    assert torch.equal(windows[1, 4].view(7, 7, 3), padded[1, 7:14, 7:14])
    assert torch.equal(merge_windows(windows, (9, 15), 7), x)


def test_pooling_is_a_convolution_that_all_channels_share() -> None:
    x, weight, bias = torch.randn(2, 6, 9, 4), torch.randn(1, 9), torch.randn(1)
    kernel = weight.view(1, 1, 3, 3).expand(4, 1, 3, 3)
    expected = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), kernel, stride=3, groups=4)
    pooled = pool_windows(x, weight, bias, 3)
    torch.testing.assert_close(pooled, expected.permute(0, 2, 3, 1) + bias)
