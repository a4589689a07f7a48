"""Which query answers for which target: assignment of least cost.

Mask2Former (Cheng et al., CVPR 2022), section 4.1, after DETR (Carion et al., ECCV 2020),
equation 1. Costs are computed on the device for all predictions and copied to the host once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from .mask_targets import MaskTargets
from .point_sampling import DrawPoints, sample_points
from .transformer_decoder import MaskPrediction


class NonFiniteCostError(FloatingPointError):
    """A matching cost is infinite or NaN; the message names the tensor that it came from."""


class PairCosts(NamedTuple):
    """Costs of all pairs of a query and a target of one clip, float32 [Q, n], not weighted.

    Attributes:
        classification: minus the probability of the target's class.
        mask: mean binary cross entropy over the points.
        dice: 1 - Dice coefficient, smoothed by 1.
    """

    classification: torch.Tensor
    mask: torch.Tensor
    dice: torch.Tensor


class Match(NamedTuple):
    """Pairs of one clip: int64 [m] positions of queries, ascending, and of their targets."""

    queries: torch.Tensor
    targets: torch.Tensor


def class_costs(class_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits [Q, K+1] and labels [n] to costs [Q, n]."""
    return -class_logits.softmax(-1)[:, labels]


def cross_entropy_costs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mask logits [Q, P] and target values [n, P] at the same points to costs [Q, n]."""
    positive, negative = F.softplus(-logits), F.softplus(logits)
    return (positive @ targets.T + negative @ (1.0 - targets).T) / logits.shape[1]


def dice_costs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mask logits [Q, P] and target values [n, P] at the same points to costs [Q, n]."""
    probability = logits.sigmoid()
    overlap = 2.0 * probability @ targets.T
    total = probability.sum(1)[:, None] + targets.sum(1)
    return 1.0 - (overlap + 1.0) / (total + 1.0)


@torch.no_grad()
def pair_costs(
    prediction: MaskPrediction,
    targets: Sequence[MaskTargets],
    draw: DrawPoints,
    name: str,
    num_points: int,
    item: str = "item",
) -> list[PairCosts]:
    """Costs of every clip of a prediction, in float32.

    All queries and targets of a clip are compared at one set of points, the same in all frames.

    Args:
        prediction: of B clips.
        targets: of the same clips.
        draw: gives the points of clip b as `points.match.<name>.<item><b>.a`.
        num_points: P.
    """
    batch, _, frames = prediction.masks.shape[:3]
    device = prediction.masks.device
    with torch.autocast(device_type=device.type, enabled=False):
        points = torch.cat(
            [
                draw(f"points.match.{name}.{item}{index}.a", 1, num_points, device)
                for index in range(batch)
            ]
        )[:, None].expand(-1, frames, -1, -1)  # [B, T, P, 2]
        maps = prediction.masks.float().transpose(1, 2).flatten(0, 1)  # [B*T, Q, h, w]
        sampled = sample_points(maps, points.flatten(0, 1)).unflatten(0, (batch, frames))
        sampled = sampled.transpose(1, 2).flatten(2)  # [B, Q, T*P]
        costs = []
        for index, target in enumerate(targets):
            truth = sample_points(target.masks.transpose(0, 1), points[index])
            truth = truth.transpose(0, 1).flatten(1)  # [n, T*P]
            costs.append(
                PairCosts(
                    class_costs(prediction.class_logits[index].float(), target.labels),
                    cross_entropy_costs(sampled[index], truth),
                    dice_costs(sampled[index], truth),
                )
            )
        return costs


def to_host(costs: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Cost matrices as arrays, by one copy from the device."""
    if not costs:
        return []
    flat = torch.cat([cost.flatten() for cost in costs]).cpu()
    parts = flat.split([cost.numel() for cost in costs])
    return [part.view(cost.shape).numpy() for part, cost in zip(parts, costs, strict=True)]


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows, ascending, and columns of the assignment of least cost in [Q, n].

    With more targets than queries, every query gets one and targets are left over.
    """
    return linear_sum_assignment(cost)


def check_finite(
    costs: Sequence[np.ndarray], predictions: Sequence[MaskPrediction], names: Sequence[str]
) -> None:
    """Raise NonFiniteCostError where a cost is not finite.

    Args:
        costs: of every prediction and clip, prediction-major.
        predictions: what the costs came from.
        names: of the predictions, for the message.
    """
    if all(np.isfinite(cost).all() for cost in costs):
        return
    bad = []
    for name, prediction in zip(names, predictions, strict=True):
        for what, value in (
            ("class logits", prediction.class_logits),
            ("mask logits", prediction.masks),
        ):
            clips = [i for i, clip in enumerate(value) if not bool(clip.isfinite().all())]
            if clips:
                bad.append(f"the {what} of prediction {name}, clips {clips}")
    reason = "all logits are, but so large that costs overflow"
    if bad:
        reason = f"there are infinite or NaN values in {', '.join(bad)}"
    raise NonFiniteCostError(f"matching costs are not finite: {reason}")


class HungarianMatcher:
    """One query for every target, by least weighted cost.

    Args:
        class_weight, mask_weight, dice_weight: of the costs.
        num_points: at which masks are compared.
    """

    def __init__(
        self,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        num_points: int = 12544,
    ):
        self.class_weight = float(class_weight)
        self.mask_weight = float(mask_weight)
        self.dice_weight = float(dice_weight)
        self.num_points = int(num_points)

    def weighted(self, costs: PairCosts) -> torch.Tensor:
        """The cost that is minimised, [Q, n]."""
        return (
            self.class_weight * costs.classification
            + self.mask_weight * costs.mask
            + self.dice_weight * costs.dice
        )

    def match(
        self,
        predictions: Sequence[MaskPrediction],
        targets: Sequence[MaskTargets],
        draw: DrawPoints,
        names: Sequence[str],
    ) -> list[list[Match]]:
        """Pairs of every prediction and clip.

        Args:
            predictions: each of the same B clips; each is matched on its own.
            targets: of the B clips.
            draw: gives the points, see `pair_costs`.
            names: of the predictions.

        Raises:
            NonFiniteCostError: a cost is infinite or NaN.
        """
        costs = [
            self.weighted(cost)
            for prediction, name in zip(predictions, names, strict=True)
            for cost in pair_costs(prediction, targets, draw, name, self.num_points)
        ]
        matrices = to_host(costs)
        check_finite(matrices, predictions, names)
        matches = [as_match(*assign(matrix)) for matrix in matrices]
        count = len(targets)
        return [matches[start : start + count] for start in range(0, len(matches), count)]


def as_match(queries: np.ndarray, targets: np.ndarray) -> Match:
    return Match(torch.from_numpy(queries), torch.from_numpy(targets))
