from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vss2.modeling.mask_targets import mask_targets
from vss2.modeling.matcher import (
    HungarianMatcher,
    NonFiniteCostError,
    class_costs,
    cross_entropy_costs,
    dice_costs,
    pair_costs,
    to_host,
)
from vss2.modeling.point_sampling import sample_points, uncertain_points, uniform_points

from .mask_cases import fixed_points, labels, predictions, targets

NAMES = ["aux0", "final"]


def matcher(**options) -> HungarianMatcher:
    return HungarianMatcher(num_points=32, **options)


def test_targets_are_the_classes_of_a_clip_in_order() -> None:
    maps = labels((3, 1), (), frames=2)
    maps[0, 1] = 255
    maps[0, 1, 0] = 4
    first, second = mask_targets(maps)
    assert first.labels.tolist() == [1, 3, 4]
    assert first.masks.shape == (3, 2, 16, 16)
    assert torch.equal(first.masks[1], (maps[0] == 3).float())
    assert not first.masks[0, 1].any()
    assert second.labels.shape == (0,)
    assert second.masks.shape == (0, 2, 16, 16)


def test_costs_by_hand() -> None:
    logits, truth = torch.randn(3, 10), (torch.rand(2, 10) > 0.5).float()
    cross_entropy, dice = cross_entropy_costs(logits, truth), dice_costs(logits, truth)
    for query, target in itertools.product(range(3), range(2)):
        expected = F.binary_cross_entropy_with_logits(logits[query], truth[target])
        torch.testing.assert_close(cross_entropy[query, target], expected)
        p, t = logits[query].sigmoid(), truth[target]
        expected = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        torch.testing.assert_close(dice[query, target], expected)
    costs = class_costs(torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]), torch.tensor([0, 2]))
    assert costs[0].tolist() == pytest.approx([-1 / 3, -1 / 3])
    assert costs[1, 0] < -0.99


def test_points_are_the_same_in_all_frames_and_shared_by_all_pairs() -> None:
    (prediction,) = predictions(batch=1, frames=3, count=1)
    (target,) = targets((0, 2, 4), frames=3)
    drawn = []

    def draw(name, rows, points, device):
        drawn.append((name, rows, points))
        return fixed_points(name, rows, points, device)

    (cost,) = pair_costs(prediction, [target], draw, "final", 32)
    assert drawn == [("points.match.final.item0.a", 1, 32)]
    points = fixed_points("", 1, 32, torch.device("cpu"))
    frames = [sample_points(prediction.masks[:, :, t], points)[0] for t in range(3)]
    truth = [sample_points(target.masks[None, :, t], points)[0] for t in range(3)]
    expected = cross_entropy_costs(torch.cat(frames, 1), torch.cat(truth, 1))
    torch.testing.assert_close(cost.mask, expected)


def test_the_assignment_is_the_cheapest_of_all() -> None:
    (prediction,) = predictions(batch=1, queries=4, count=1)
    target = targets((0, 2, 4))
    own = matcher(class_weight=1.0, mask_weight=3.0, dice_weight=2.0)
    (cost,) = pair_costs(prediction, target, fixed_points, "final", 32)
    total = own.weighted(cost).numpy()
    torch.testing.assert_close(
        own.weighted(cost), cost.classification + 3.0 * cost.mask + 2.0 * cost.dice
    )
    best = min(itertools.permutations(range(4), 3), key=lambda rows: total[rows, range(3)].sum())
    ((pair,),) = own.match([prediction], target, fixed_points, ["final"])
    found = dict(zip(pair.targets.tolist(), pair.queries.tolist(), strict=True))
    assert [found[index] for index in range(3)] == list(best)
    assert pair.queries.tolist() == sorted(pair.queries.tolist())


def test_all_costs_reach_the_host_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: copies.append(1) or real(x))
    matches = matcher().match(predictions(), targets((0, 1), (2,)), fixed_points, NAMES)
    assert len(copies) == 1
    assert [[len(pair.queries) for pair in clips] for clips in matches] == [[2, 1], [2, 1]]
    matrices = [torch.rand(3, 2), torch.rand(3, 0), torch.rand(3, 1)]
    for matrix, array in zip(matrices, to_host(matrices), strict=True):
        assert np.array_equal(matrix.numpy(), array)
    assert to_host([]) == []


def test_more_targets_than_queries_leave_targets_over() -> None:
    ((pair, _),) = matcher().match(
        predictions(queries=2, count=1), targets((0, 1, 2, 3), (1,)), fixed_points, ["final"]
    )
    assert pair.queries.tolist() == [0, 1]
    assert len(set(pair.targets.tolist())) == 2


@pytest.mark.parametrize("what", ["class logits", "mask logits"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_costs_that_are_not_finite_name_their_tensor(what: str, value: float) -> None:
    both = predictions()
    tensor = both[0].class_logits if what == "class logits" else both[0].masks
    with torch.no_grad():
        tensor[1] = value
    with pytest.raises(NonFiniteCostError, match=rf"the {what} of prediction aux0, clips \[1\]"):
        matcher().match(both, targets((0, 1), (2,)), fixed_points, NAMES)


def test_uncertain_points_lie_where_logits_are_small() -> None:
    logits = torch.linspace(-4, 4, 32).expand(2, 32, 32).contiguous()  # 0 in the middle column
    torch.manual_seed(0)
    points = uncertain_points(logits, uniform_points, "p", 40, 3.0, 0.75)
    assert points.shape == (2, 40, 2)
    chosen, others = points[:, :30, 0], points[:, 30:, 0]
    assert (chosen - 0.5).abs().max() < 0.25
    assert (others - 0.5).abs().max() > 0.25
    every = uncertain_points(logits, uniform_points, "p", 40, 3.0, 1.0)
    assert (every[..., 0] - 0.5).abs().max() < 0.3


def test_samples_outside_the_map_are_zero() -> None:
    maps = torch.ones(1, 2, 4, 4)
    points = torch.tensor([[[0.5, 0.5], [0.0, 0.5], [0.0, 0.0]]])
    torch.testing.assert_close(sample_points(maps, points)[0, 0], torch.tensor([1.0, 0.5, 0.25]))
