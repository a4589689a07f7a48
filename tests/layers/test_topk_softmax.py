from __future__ import annotations

import math

import pytest
import torch

from vss2.layers.topk_softmax import (
    frame_topk,
    gaussian_log_kernel,
    l2_similarity,
    nearest_query,
    weighted_rows,
)


@pytest.mark.parametrize(
    ("frames", "positions", "k"), [(1, 9, 4), (5, 12, 3), (4, 3, 5), (6, 2, 20), (3, 30, 30)]
)
def test_frame_topk_is_topk(frames: int, positions: int, k: int) -> None:
    torch.manual_seed(k)
    scores = torch.randn(7, frames, positions)
    values, index = frame_topk(scores, k)
    expected = scores.flatten(1).topk(min(k, frames * positions))
    assert torch.equal(values.sort(1, descending=True).values, expected.values)
    assert torch.equal(scores.flatten(1).gather(1, index), values)
    assert all(len(set(row.tolist())) == values.shape[1] for row in index)


def test_frame_topk_with_equal_scores() -> None:
    values, index = frame_topk(torch.zeros(2, 4, 6), 5)
    assert not values.any()
    assert all(len(set(row.tolist())) == 5 for row in index)


def test_frame_topk_of_later_frames_only() -> None:
    scores = torch.randn(3, 5, 8)
    values, index = frame_topk(scores[:, 2:], 4)
    assert torch.equal(scores[:, 2:].flatten(1).gather(1, index), values)


def test_similarity_is_minus_the_distance_up_to_the_querys_norm() -> None:
    keys, queries = torch.randn(6, 4), torch.randn(5, 4)
    scores = l2_similarity(keys, keys.square().sum(1), queries)
    distance = torch.cdist(queries, keys).square()
    expected = (queries.square().sum(1, keepdim=True) - distance) / math.sqrt(4)
    assert torch.allclose(scores, expected, atol=1e-5)
    out = torch.zeros(5, 10)
    l2_similarity(keys, keys.square().sum(1), queries, out=out[:, 2:8])
    assert torch.equal(out[:, 2:8], scores)
    assert not out[:, 8:].any()


def test_nearest_query_in_parts_is_that_of_all() -> None:
    keys, queries = torch.randn(6, 4), torch.randn(9, 4)
    norms = keys.square().sum(1)
    best = None
    for first in (0, 4, 8):
        best = nearest_query(keys, norms, queries[first : first + 4], first, best)
    assert best is not None
    assert torch.equal(best[1], torch.cdist(queries, keys).argmin(0))


def test_gaussian_kernel_of_grid_distance() -> None:
    kernel = gaussian_log_kernel(torch.tensor([0, 7]), torch.tensor([0, 9]), width=5, sigma=2.0)
    # Cells (0, 0) and (1, 2) against (0, 0) and (1, 4).
    assert torch.allclose(kernel, -torch.tensor([[0.0, 17.0], [5.0, 4.0]]) / 8)


def test_weighted_rows() -> None:
    rows = torch.randn(10, 3)
    index = torch.tensor([[1, 4], [9, 9]])
    weights = torch.rand(2, 2)
    expected = (rows[index] * weights[..., None]).sum(1)
    assert torch.allclose(weighted_rows(rows, index, weights), expected, atol=1e-6)
    ragged = weighted_rows(
        rows, index.flatten()[:3], weights.flatten()[:3], torch.tensor([0, 2, 2])
    )
    assert torch.allclose(ragged[0], expected[0], atol=1e-6)
    assert not ragged[1].any()
    assert torch.allclose(ragged[2], rows[9] * weights[1, 0], atol=1e-6)
