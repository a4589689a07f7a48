"""Two queries for every target: the assignment of least cost, twice (THE-Mask, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from vss2.errors import InputError
from vss2.modeling.mask_targets import MaskTargets
from vss2.modeling.matcher import (
    HungarianMatcher,
    Match,
    as_match,
    assign,
    check_finite,
    pair_costs,
    to_host,
)
from vss2.modeling.point_sampling import DrawPoints
from vss2.modeling.transformer_decoder import MaskPrediction

SECOND_COSTS = ("full", "mask")


class Rounds(NamedTuple):
    """Pairs of one clip: every target has a query of `first` and another one of `second`."""

    first: Match
    second: Match

    def both(self) -> Match:
        """The pairs of both rounds."""
        return Match(*(torch.cat(parts) for parts in zip(self.first, self.second, strict=True)))


class TwoRoundMatcher(HungarianMatcher):
    """As `HungarianMatcher`, then again among the queries that the first round has left.

    Args:
        second_cost: what the second round minimises: "full", the weighted sum of all costs as in
            the first (published in stage 2), or "mask", the cross entropy of the masks alone
            (published in stage 1).
        class_weight, mask_weight, dice_weight, num_points: see `HungarianMatcher`.
    """

    def __init__(
        self,
        second_cost: str = "full",
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        num_points: int = 12544,
    ):
        super().__init__(class_weight, mask_weight, dice_weight, num_points)
        if second_cost not in SECOND_COSTS:
            raise InputError(f"second_cost is one of {SECOND_COSTS}, got {second_cost!r}")
        self.second_cost = second_cost

    def match_rounds(
        self,
        predictions: Sequence[MaskPrediction],
        targets: Sequence[MaskTargets],
        draw: DrawPoints,
        names: Sequence[str],
    ) -> list[list[Rounds]]:
        """Pairs of every prediction and clip; see `HungarianMatcher.match` for the arguments.

        Raises:
            InputError: a clip has more targets than half the queries.
            NonFiniteCostError: a cost is infinite or NaN.
        """
        check_enough_queries(predictions[0].class_logits.shape[1], targets)
        costs = [
            cost
            for prediction, name in zip(predictions, names, strict=True)
            for cost in pair_costs(prediction, targets, draw, name, self.num_points, "video")
        ]
        first = [self.weighted(cost) for cost in costs]
        second = [cost.mask for cost in costs] if self.second_cost == "mask" else []
        matrices = to_host(first + second)
        check_finite(matrices[: len(first)], predictions, names)
        again = matrices[len(first) :] or matrices
        rounds = [assign_twice(*pair) for pair in zip(matrices[: len(first)], again, strict=True)]
        count = len(targets)
        return [rounds[start : start + count] for start in range(0, len(rounds), count)]


def assign_twice(first_cost: np.ndarray, second_cost: np.ndarray) -> Rounds:
    """Two disjoint assignments of the targets in [Q, n].

    Queries of the first round take no part in the second. The release gives them costs a
    thousand times the largest instead, to the same effect.
    """
    queries, targets = assign(first_cost)
    left = np.setdiff1d(np.arange(len(first_cost)), queries)
    rows, columns = assign(second_cost[left])
    return Rounds(as_match(queries, targets), as_match(left[rows], columns))


def check_enough_queries(num_queries: int, targets: Sequence[MaskTargets]) -> None:
    """Raise InputError where a clip has more targets than half the queries."""
    largest = max((len(target.labels) for target in targets), default=0)
    if 2 * largest > num_queries:
        raise InputError(
            f"a clip shows {largest} classes, and two-round matching takes two of the "
            f"{num_queries} queries for each: set model.num_queries to at least {2 * largest}"
        )


def combined(video: MaskPrediction, frame: MaskPrediction) -> MaskPrediction:
    """What stage 2 matches: classes of the video branch, masks of the frame branch.

    Args:
        video: of B clips of T frames.
        frame: of B*T clips of one frame, clip-major.
    """
    batch = len(video.class_logits)
    masks = frame.masks.squeeze(2).unflatten(0, (batch, -1)).transpose(1, 2)
    return MaskPrediction(video.class_logits, masks)


def every_frame(rounds: Sequence[Rounds], num_frames: int) -> list[Rounds]:
    """The pairs of B clips, repeated for each of their frames."""
    return [pairs for pairs in rounds for _ in range(num_frames)]
