"""Two-round matching and hierarchical losses against the published implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from themask_points import RecordedPoints, normal

from vss2.errors import InputError
from vss2.modeling.criterion import MaskRows, PointSampler, prediction_names
from vss2.modeling.mask_targets import MaskTargets, mask_targets
from vss2.modeling.transformer_decoder import MaskPrediction
from vss2.projects.themask.criterion import TwoRoundCriterion, covered_part_losses, pixels_per_cell
from vss2.projects.themask.decoder import ClipPredictions
from vss2.projects.themask.matching import TwoRoundMatcher, assign_twice, combined
from vss2.testing.fixtures import load_fixture

DESCRIPTION, ARRAYS = load_fixture("themask_losses")
CONFIG = DESCRIPTION["config"]
NAMES = prediction_names(CONFIG["layers"])
SECOND_COSTS = {"stage2": "full", "stage1_warmup": "mask", "stage1_two_round": "mask"}


def criterion(second_cost: str, points: RecordedPoints | None = None) -> TwoRoundCriterion:
    made = TwoRoundCriterion(
        CONFIG["num_classes"],
        matcher=TwoRoundMatcher(second_cost, num_points=CONFIG["num_points"]),
        points=PointSampler(CONFIG["num_points"]),
    )
    if points is not None:
        made.points.draw = points
    return made


def branch(case: str, name: str, clips: int, frames: int) -> list[MaskPrediction]:
    """Leaf tensors of the recorded inputs, in the order of the layers."""
    queries, classes = CONFIG["queries"], CONFIG["num_classes"] + 1
    predictions = []
    for layer in NAMES:
        key = f"{case}.{name}.{layer}"
        logits = 2 * normal(f"{key}.pred_logits", (clips, queries, classes), 0)
        shape = (clips, queries, frames, *CONFIG["mask_hw"])
        masks = 3 * normal(f"{key}.pred_masks", shape, 0)
        predictions.append(MaskPrediction(logits.requires_grad_(), masks.requires_grad_()))
    return predictions


class Case:
    """Inputs of one recorded case, and the losses that its stage takes."""

    def __init__(self, name: str):
        self.name = name
        frames = CONFIG["frames_stage2"] if name == "stage2" else CONFIG["frames_stage1"]
        labels = torch.from_numpy(ARRAYS["labels_2frame"][:, :frames, 0]).long()
        self.targets = mask_targets(labels)
        self.points = RecordedPoints(DESCRIPTION["seed"])
        self.criterion = criterion(SECOND_COSTS[name], self.points)
        videos = CONFIG["videos"]
        self.video = branch(name, "video", videos, frames)
        self.frame = branch(name, "frame", videos * frames, 1) if name == "stage2" else None

    def losses(self) -> dict[str, torch.Tensor]:
        if self.frame is not None:
            return self.criterion.two_branches(
                ClipPredictions(self.video, self.frame), self.targets
            )
        if self.name == "stage1_warmup":
            return self.criterion(self.video, self.targets)
        return self.criterion.two_rounds(self.video, self.targets)

    def matched(self) -> list[MaskPrediction]:
        if self.frame is None:
            return self.video
        return [combined(*pair) for pair in zip(self.video, self.frame, strict=True)]


@pytest.fixture(params=list(SECOND_COSTS))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_losses_and_points_are_the_published_ones(case: Case) -> None:
    recorded = CONFIG["cases"][case.name]
    losses = case.losses()
    assert losses.keys() == recorded["losses"].keys()
    for name, value in losses.items():
        assert np.isclose(value.item(), recorded["losses"][name], rtol=1e-5), name
    total = torch.stack(list(losses.values())).sum()
    assert np.isclose(total.item(), recorded["total"], rtol=1e-6)
    assert sorted(case.points.used) == sorted((n, s) for n, s in recorded["points_used"])

    total.backward()
    branches = {"video": case.video, "frame": case.frame}
    for key, expected in ARRAYS.items():
        if not key.startswith(f"{case.name}/grad_"):
            continue
        _, which, _, what, _ = key.split("/")[1].split("_")
        logits, masks = branches[which][-1]
        gradient = logits.grad[:, :, ::5] if what == "logits" else masks.grad[:, ::2]
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    for which in ("video", "frame"):
        mean = recorded.get(f"grad_{which}_aux0_masks_mean_abs")
        if mean is not None:
            assert np.isclose(branches[which][0].masks.grad.abs().mean(), mean, rtol=1e-5)


def test_both_rounds_match_as_published(case: Case) -> None:
    matcher = case.criterion.matcher
    rounds = matcher.match_rounds(case.matched(), case.targets, case.points, NAMES)
    for layer, clips in zip(NAMES, rounds, strict=True):
        recorded = CONFIG["cases"][case.name]["matching"][layer]
        for number, pairs in enumerate(clips):
            for found, key in zip(pairs, ("round1", "round2"), strict=True):
                assert [part.tolist() for part in found] == recorded[key][number]
            assert len(pairs.both().queries.unique()) == 2 * len(case.targets[number].labels)


def test_weights_of_the_branches_come_from_the_arguments() -> None:
    case = Case("stage2")
    case.criterion.frame_weight = 0.0
    losses = case.losses()
    assert all((value == 0) == name.endswith("_aux") for name, value in losses.items())


def test_more_targets_than_half_the_queries_are_refused() -> None:
    cost = np.random.RandomState(0).random_sample((7, 3))
    pairs = assign_twice(cost, cost)
    assert len(pairs.both().queries.unique()) == 6
    case = Case("stage1_two_round")
    labels = torch.arange(11)
    targets = [MaskTargets(labels, torch.zeros(11, 1, 64, 64)), case.targets[1]]
    with pytest.raises(InputError, match=r"shows 11 classes.*model.num_queries to at least 22"):
        case.criterion.two_rounds(case.video, targets)


@pytest.mark.parametrize("name", list(SECOND_COSTS))
def test_labels_that_are_all_ignored_teach_no_object_alone(name: str) -> None:
    case = Case(name)
    labels = torch.full((2, case.video[0].masks.shape[2], 64, 64), 255)
    case.targets = mask_targets(labels)
    losses = case.losses()
    assert all((value > 0) == name.startswith("loss_ce") for name, value in losses.items())
    torch.stack(list(losses.values())).sum().backward()
    for prediction in [*case.video, *(case.frame or [])]:
        assert prediction.masks.grad.abs().max() == 0
        assert prediction.class_logits.grad.abs().max() > 0


@pytest.mark.parametrize("name", list(SECOND_COSTS))
def test_outputs_that_are_not_finite_give_losses_that_are_not(name: str) -> None:
    case = Case(name)
    expected = case.losses().keys()
    with torch.no_grad():
        (case.frame or case.video)[1].masks[0, 0, 0, 0, 0] = float("nan")
    losses = case.losses()
    assert losses.keys() == expected
    assert all(value.isnan() for value in losses.values())


@pytest.mark.parametrize("size", [(64, 64), (40, 56), (37, 51), (10, 9)])
def test_sums_over_cells_are_sums_over_pixels(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 10, 14, generator=generator)
    truth = (torch.rand(5, *size, generator=generator) > 0.4).float()
    enlarged = F.interpolate(logits[None], size=size, mode="nearest")[0]
    covered = (truth * enlarged.sigmoid() > 0.5).float()
    entropy = F.binary_cross_entropy_with_logits(enlarged, covered, reduction="none")
    probability = enlarged.sigmoid()
    dice = 1 - (2 * (probability * covered).sum((1, 2)) + 1) / (
        probability.sum((1, 2)) + covered.sum((1, 2)) + 1
    )
    area = pixels_per_cell(torch.ones(1, *size), (10, 14))
    found: Any = covered_part_losses(MaskRows(logits, pixels_per_cell(truth, (10, 14))), area)
    torch.testing.assert_close(found.mask, entropy.mean((1, 2)).sum())
    torch.testing.assert_close(found.dice, dice.sum())
