"""Losses of mask classification with auxiliary predictions, on sampled points.

Mask2Former (Cheng et al., CVPR 2022), sections 3.3 and 4.1. A clip is treated as a whole: one
class and one mask over all its frames per target (arXiv 2112.10764).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from vss2.d2.utils import comm
from vss2.errors import InputError

from .mask_targets import MaskTargets
from .matcher import HungarianMatcher, Match, NonFiniteCostError
from .point_sampling import DrawPoints, sample_points, uncertain_points, uniform_points
from .transformer_decoder import MaskPrediction

logger = logging.getLogger(__name__)


class MaskRows(NamedTuple):
    """Matched pairs, each frame of a pair one row.

    Attributes:
        logits: float32 [R, h, w], predicted.
        truth: float32 [R, H, W], 0 or 1.
    """

    logits: torch.Tensor
    truth: torch.Tensor


class PointLosses(NamedTuple):
    """Sums over rows of the losses on points; scalars."""

    mask: torch.Tensor
    dice: torch.Tensor


def mean_num_masks(targets: Sequence[MaskTargets], device: torch.device) -> torch.Tensor:
    """Number of targets, averaged over the ranks of a run, at least 1; every rank must call it."""
    count = torch.tensor(float(sum(len(target.labels) for target in targets)), device=device)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(count)
    return (count / comm.get_world_size()).clamp(min=1.0)


def query_labels(
    class_logits: torch.Tensor, targets: Sequence[MaskTargets], matches: Sequence[Match]
) -> torch.Tensor:
    """The class that each query of [B, Q, K+1] shall predict, int64 [B, Q]; K where unmatched."""
    batch, queries, classes = class_logits.shape
    labels = torch.full((batch, queries), classes - 1, device=class_logits.device)
    for row, target, match in zip(labels, targets, matches, strict=True):
        row[match.queries.to(row.device)] = target.labels[match.targets.to(row.device)]
    return labels


def class_loss(
    class_logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor
) -> torch.Tensor:
    """Cross entropy of all queries, divided by the sum of their labels' weights.

    Args:
        class_logits: [B, Q, K+1].
        labels: int64 [B, Q].
        class_weights: float32 [K+1].
    """
    return F.cross_entropy(class_logits.float().flatten(0, 1), labels.flatten(), class_weights)


def matched_rows(
    masks: torch.Tensor, targets: Sequence[MaskTargets], matches: Sequence[Match]
) -> MaskRows:
    """Rows of the pairs of all clips, clip-major, then pair, then frame.

    Args:
        masks: [B, Q, T, h, w], logits.
    """
    logits = [
        mask[match.queries.to(mask.device)] for mask, match in zip(masks, matches, strict=True)
    ]
    truth = [
        target.masks[match.targets.to(masks.device)]
        for target, match in zip(targets, matches, strict=True)
    ]
    return MaskRows(torch.cat(logits).float().flatten(0, 1), torch.cat(truth).flatten(0, 1))


def cross_entropy_sum(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Sum over rows of the mean binary cross entropy; logits and truth [R, P]."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1).sum()


def dice_sum(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Sum over rows of 1 - Dice coefficient, smoothed by 1; logits and truth [R, P]."""
    probability = logits.sigmoid()
    overlap = 2.0 * (probability * truth).sum(1)
    return (1.0 - (overlap + 1.0) / (probability.sum(1) + truth.sum(1) + 1.0)).sum()


class PointSampler:
    """Where mask losses look: mostly at points whose prediction is uncertain.

    Args:
        num_points: P per row.
        oversample_ratio: candidates per point.
        importance_ratio: share of the points that is chosen among the candidates.

    Attributes:
        draw: where all points come from, those of matching too. A test can replace it.
    """

    def __init__(
        self,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
    ):
        if oversample_ratio < 1.0 or not 0.0 <= importance_ratio <= 1.0:
            raise InputError(
                "oversample_ratio is at least 1 and importance_ratio lies between 0 and 1, got "
                f"{oversample_ratio} and {importance_ratio}"
            )
        self.num_points = int(num_points)
        self.oversample_ratio = float(oversample_ratio)
        self.importance_ratio = float(importance_ratio)
        self.draw: DrawPoints = uniform_points

    def losses(self, rows: MaskRows, name: str) -> PointLosses:
        """Losses at points drawn as `points.loss.<name>`; gradients reach the logits alone."""
        logits, truth = rows
        if not len(logits):
            nothing = logits.sum()  # 0, and connected with the parameters
            return PointLosses(nothing, nothing)
        points = uncertain_points(
            logits,
            self.draw,
            f"points.loss.{name}",
            self.num_points,
            self.oversample_ratio,
            self.importance_ratio,
        )
        found = sample_points(logits[:, None], points)[:, 0]
        wanted = sample_points(truth[:, None], points)[:, 0]
        return PointLosses(cross_entropy_sum(found, wanted), dice_sum(found, wanted))


def prediction_names(count: int) -> list[str]:
    """Names of `count` predictions in order: "aux0", "aux1", ..., and "final" for the last."""
    return [*(f"aux{index}" for index in range(count - 1)), "final"]


def key_suffix(name: str) -> str:
    """What the losses of a prediction carry behind their name: "_0" for "aux0", "" for "final"."""
    return "" if name == "final" else f"_{name.removeprefix('aux')}"


def poisoned(predictions: Sequence[MaskPrediction], keys: Sequence[str]) -> dict[str, torch.Tensor]:
    """Losses that are NaN and so are their gradients, for a step that cannot be matched.

    An error would stop this rank alone; a NaN is found by the training loop, which stops or skips
    the step on all ranks alike.
    """
    total = torch.stack([p.class_logits.sum() + p.masks.sum() for p in predictions]).sum()
    return {key: total * float("nan") for key in keys}


class MaskCriterion(nn.Module):
    """Class, mask and Dice loss of every prediction, each with its own matching.

    Args:
        num_classes: K.
        matcher: pairs queries and targets.
        points: where the mask losses look.
        class_weight, mask_weight, dice_weight: factors of the losses.
        no_object_weight: weight of the class "no object" in the class loss.
    """

    empty_weight: torch.Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        matcher: HungarianMatcher,
        points: PointSampler,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
    ):
        super().__init__()
        self.matcher = matcher
        self.points = points
        self.class_weight = float(class_weight)
        self.mask_weight = float(mask_weight)
        self.dice_weight = float(dice_weight)
        weights = torch.ones(num_classes + 1)
        weights[-1] = no_object_weight
        self.register_buffer("empty_weight", weights)
        self._warned = False

    def forward(
        self, predictions: Sequence[MaskPrediction], targets: Sequence[MaskTargets]
    ) -> dict[str, torch.Tensor]:
        """Weighted losses `loss_ce`, `loss_mask`, `loss_dice`, and with `_0`, `_1`, ... behind.

        Mask losses are sums over rows divided by the number of targets, averaged over ranks.

        Args:
            predictions: auxiliary ones in order, the final one last.
            targets: of the same clips.
        """
        self._warn_of_left_over(predictions[-1], targets)
        device = predictions[-1].masks.device
        num_masks = mean_num_masks(targets, device)
        names = prediction_names(len(predictions))
        with torch.autocast(device_type=device.type, enabled=False):
            try:
                matches = self.matcher.match(predictions, targets, self.points.draw, names)
            except NonFiniteCostError as error:
                logger.error("%s; the losses of this step are NaN", error)
                kinds = ("loss_ce", "loss_mask", "loss_dice")
                return poisoned(predictions, [k + key_suffix(n) for n in names for k in kinds])
            losses = {}
            for name, prediction, match in zip(names, predictions, matches, strict=True):
                own = self._losses(prediction, targets, match, num_masks, name)
                losses.update({key + key_suffix(name): value for key, value in own.items()})
        return losses

    def _losses(
        self,
        prediction: MaskPrediction,
        targets: Sequence[MaskTargets],
        matches: Sequence[Match],
        num_masks: torch.Tensor,
        name: str,
    ) -> dict[str, torch.Tensor]:
        labels = query_labels(prediction.class_logits, targets, matches)
        rows = matched_rows(prediction.masks, targets, matches)
        point_losses = self.points.losses(rows, name)
        return {
            "loss_ce": self.class_weight
            * class_loss(prediction.class_logits, labels, self.empty_weight),
            "loss_mask": self.mask_weight * point_losses.mask / num_masks,
            "loss_dice": self.dice_weight * point_losses.dice / num_masks,
        }

    def _warn_of_left_over(
        self, prediction: MaskPrediction, targets: Sequence[MaskTargets]
    ) -> None:
        queries, most = prediction.masks.shape[1], max(len(t.labels) for t in targets)
        if most > queries and not self._warned:
            logger.warning(
                "a clip shows %d classes, but there are %d queries: each learns one, the other "
                "%d classes of such clips are left out; raise num_queries",
                most,
                queries,
                most - queries,
            )
            self._warned = True
