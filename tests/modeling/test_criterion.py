from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vss2.engine import launch
from vss2.errors import InputError
from vss2.modeling.criterion import (
    MaskRows,
    PointSampler,
    class_loss,
    matched_rows,
    mean_num_masks,
    query_labels,
)
from vss2.modeling.matcher import Match

from . import mask_rank_checks
from .mask_cases import criterion, fixed_points, predictions, targets

KEYS = ["loss_ce_0", "loss_mask_0", "loss_dice_0", "loss_ce", "loss_mask", "loss_dice"]


def match(queries: list[int], chosen: list[int]) -> Match:
    return Match(torch.tensor(queries, dtype=torch.int64), torch.tensor(chosen, dtype=torch.int64))


def test_class_loss_by_hand() -> None:
    logits = torch.randn(2, 3, 6)
    pairs = [match([0, 2], [1, 0]), match([], [])]
    labels = query_labels(logits, targets((1, 4), ()), pairs)
    assert labels.tolist() == [[4, 5, 1], [5, 5, 5]]
    weights = torch.tensor([1.0] * 5 + [0.1])
    losses = -logits.log_softmax(-1).gather(2, labels[..., None])[..., 0]
    expected = (losses * weights[labels]).sum() / weights[labels].sum()
    torch.testing.assert_close(class_loss(logits, labels, weights), expected)


def test_rows_are_pairs_and_their_frames() -> None:
    masks = torch.randn(2, 4, 3, 8, 8)
    own = targets((1, 4), (2,), frames=3)
    rows = matched_rows(masks, own, [match([0, 2], [1, 0]), match([3], [0])])
    assert rows.logits.shape == (9, 8, 8)
    assert torch.equal(rows.logits[4], masks[0, 2, 1])
    assert torch.equal(rows.truth[4], own[0].masks[0, 1])
    assert torch.equal(rows.truth[8], own[1].masks[0, 2])


def test_point_losses_by_hand() -> None:
    sampler = PointSampler(64, importance_ratio=0.0)
    sampler.draw = fixed_points
    logits = torch.tensor([-2.0, 3.0])[:, None, None].expand(2, 8, 8)
    truth = torch.tensor([0.0, 1.0])[:, None, None].expand(2, 16, 16)
    points = torch.full((2, 64, 2), 0.5)
    sampler.draw = lambda *_: points
    losses = sampler.losses(MaskRows(logits, truth), "final")
    expected = F.softplus(torch.tensor([-2.0, -3.0])).sum()
    torch.testing.assert_close(losses.mask, expected)
    p = torch.tensor([-2.0, 3.0]).sigmoid() * 64
    dice = (1 - 1 / (p[0] + 1)) + (1 - (2 * p[1] + 1) / (p[1] + 64 + 1))
    torch.testing.assert_close(losses.dice, dice)


def test_every_prediction_has_its_losses_and_gradients() -> None:
    both = predictions()
    losses = criterion()(both, targets((0, 1), (2,)))
    assert list(losses) == KEYS
    sum(losses.values()).backward()
    for prediction in both:
        for tensor in prediction:
            assert tensor.grad.isfinite().all()
            assert tensor.grad.any()


def test_weights_are_factors() -> None:
    plain, weighted = criterion(), criterion(class_weight=4.0, mask_weight=1.0, dice_weight=10.0)
    plain.points.draw = weighted.points.draw = fixed_points
    one, other = (c(predictions(), targets((0, 1), (2,))) for c in (plain, weighted))
    for key in KEYS:
        factor = {"ce": 2.0, "mask": 0.2, "dice": 2.0}[key.split("_")[1]]
        torch.testing.assert_close(other[key], factor * one[key])


def test_labels_that_are_all_ignored_teach_no_object_alone() -> None:
    both = predictions()
    losses = criterion()(both, targets((), ()))
    sum(losses.values()).backward()
    assert losses["loss_mask"] == losses["loss_dice"] == 0
    assert losses["loss_ce"] > 0
    assert not both[0].masks.grad.any()
    expected = 2.0 * -both[-1].class_logits.log_softmax(-1)[..., -1].mean()
    torch.testing.assert_close(losses["loss_ce"], expected)


def test_more_targets_than_queries_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    losses = criterion()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = losses(predictions(queries=2), targets((0, 1, 2, 3), (1,)))
    assert all(value.isfinite() for value in found.values())
    (record,) = caplog.records
    assert "a clip shows 4 classes, but there are 2 queries" in record.getMessage()


@pytest.mark.parametrize("what", [0, 1], ids=["classes", "masks"])
def test_a_broken_prediction_gives_losses_that_the_loop_can_skip(
    what: int, caplog: pytest.LogCaptureFixture
) -> None:
    both = predictions()
    with torch.no_grad():
        both[1][what][0, 0] = float("nan")
    losses = criterion()(both, targets((0, 1), (2,)))
    assert sorted(losses) == sorted(KEYS)
    assert all(value.isnan() for value in losses.values())
    sum(losses.values()).backward()
    assert all(tensor.grad is not None for prediction in both for tensor in prediction)
    kind = ("class", "mask")[what]
    assert f"the {kind} logits of prediction final, clips [0]" in caplog.text


def test_losses_are_float32_under_autocast() -> None:
    both = [type(p)(p.class_logits.bfloat16(), p.masks.bfloat16()) for p in predictions()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = criterion()(both, targets((0, 1), (2,)))
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_one_process_counts_at_least_one_mask() -> None:
    assert mean_num_masks(targets((), ()), torch.device("cpu")) == 1.0
    assert mean_num_masks(targets((0, 1), (2,)), torch.device("cpu")) == 3.0


def test_two_processes_divide_by_the_mean_number_of_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launch(mask_rank_checks.main, (str(tmp_path),), num_gpus=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pth") for rank in range(2)]
    assert [rank["num_masks"].item() for rank in ranks] == [2.0, 2.0]
    losses = criterion()
    losses.points.draw = fixed_points
    alone = losses(predictions(), targets(*mask_rank_checks.ITEMS))
    for key in KEYS:
        if "ce" not in key:  # the class loss is divided by the weights of its own rank
            torch.testing.assert_close((ranks[0][key] + ranks[1][key]) / 2, alone[key])


def test_bad_settings_are_named() -> None:
    with pytest.raises(InputError, match=r"got 0\.5 and 0\.75"):
        PointSampler(oversample_ratio=0.5)
    with pytest.raises(InputError, match=r"got 3\.0 and 1\.5"):
        PointSampler(importance_ratio=1.5)
