"""The best class of every pixel, in C++ and in PyTorch, against argmax over all classes."""

from __future__ import annotations

import pytest
import torch

from vss2.layers import best_class
from vss2.layers.best_class import BestClass
from vss2.layers.extension import missing_reason

SIZES = [(1, 1), (1, 37), (33, 47)]


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either way of finding it."""
    if request.param == "torch":
        monkeypatch.setattr(best_class, "_library", lambda: None)
    elif reason := missing_reason(best_class.NAME, best_class.SOURCES):
        pytest.skip(reason)


def labels_of(scores: torch.Tensor, chunk: int) -> torch.Tensor:
    best = BestClass()
    for part in scores.split(chunk):
        best.add(part)
    return best.labels()


@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize(("classes", "chunk"), [(1, 16), (16, 16), (50, 16), (124, 7), (256, 256)])
@pytest.mark.parametrize("size", SIZES)
def test_labels_are_those_of_argmax(
    way: None, size: tuple[int, int], classes: int, chunk: int, side_by_side: bool
) -> None:
    generator = torch.Generator().manual_seed(classes)
    # Few levels: many pixels have several best classes. Negative ones beat the start value too.
    scores = torch.randint(-9, -2, (classes, *size), generator=generator).float()
    if side_by_side:
        scores = scores[None].contiguous(memory_format=torch.channels_last)[0]
    labels = labels_of(scores, chunk)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, scores.argmax(0).to(torch.uint8))


def test_scores_of_other_types_count(way: None) -> None:
    scores = torch.randn(20, 5, 6, dtype=torch.float64)
    assert torch.equal(labels_of(scores, 16), scores.argmax(0).to(torch.uint8))


@pytest.mark.parametrize("value", [float("-inf"), float("inf")])
def test_equal_infinities_go_to_the_lowest_class(way: None, value: float) -> None:
    scores = torch.full((20, 3, 4), float("-inf"))
    scores[4:] = value
    expected = 4 if value > 0 else 0
    assert labels_of(scores, 16).unique().tolist() == [expected]


def test_scores_that_are_no_numbers_end(way: None) -> None:
    scores = torch.randn(20, 3, 4)
    scores[::3, 1] = float("nan")
    labels = labels_of(scores, 16)
    assert labels[0].tolist() == scores[:, 0].argmax(0).tolist()
    assert int(labels.max()) < 20


def test_threads_change_nothing(way: None) -> None:
    scores = torch.randn(40, 61, 59)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        labels = labels_of(scores, 16)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(labels, scores.argmax(0).to(torch.uint8))
