"""Hierarchical losses: a query for every target, and a second one that learns a little with it.

An et al., Temporal-aware Hierarchical Mask Classification for Video Semantic Segmentation, BMVC
2023, section 3.2.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from vss2.modeling.criterion import (
    MaskCriterion,
    MaskRows,
    PointLosses,
    PointSampler,
    class_loss,
    key_suffix,
    matched_rows,
    mean_num_masks,
    poisoned,
    prediction_names,
    query_labels,
)
from vss2.modeling.mask_targets import MaskTargets
from vss2.modeling.matcher import NonFiniteCostError
from vss2.modeling.transformer_decoder import MaskPrediction

from .decoder import ClipPredictions
from .matching import Rounds, TwoRoundMatcher, combined, every_frame

logger = logging.getLogger(__name__)

KINDS = (
    "loss_ce",
    "r0_loss_mask",
    "r0_loss_dice",
    "r1_loss_mask_unmatched",
    "r1_loss_dice_unmatched",
)


class TwoRoundCriterion(MaskCriterion):
    """`MaskCriterion`'s losses for the queries of the first round, weak ones for the second.

    Both rounds learn the class. The mask of a second query learns from that part of the target
    which it covers already, over all pixels.

    Args:
        num_classes: K.
        matcher: of both rounds.
        points: where the mask losses of the first round look.
        class_weight, mask_weight, dice_weight, no_object_weight: see `MaskCriterion`.
        second_mask_weight, second_dice_weight: of the second round's mask losses.
        second_round_weight: of the second round against the first.
        frame_weight: of all losses of the frame branch against those of the video branch.
    """

    matcher: TwoRoundMatcher

    def __init__(
        self,
        num_classes: int,
        *,
        matcher: TwoRoundMatcher,
        points: PointSampler,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        second_mask_weight: float = 0.5,
        second_dice_weight: float = 0.5,
        second_round_weight: float = 0.5,
        frame_weight: float = 0.25,
    ):
        super().__init__(
            num_classes,
            matcher=matcher,
            points=points,
            class_weight=class_weight,
            mask_weight=mask_weight,
            dice_weight=dice_weight,
            no_object_weight=no_object_weight,
        )
        self.second_mask_weight = float(second_mask_weight) * float(second_round_weight)
        self.second_dice_weight = float(second_dice_weight) * float(second_round_weight)
        self.frame_weight = float(frame_weight)

    def two_rounds(
        self, predictions: Sequence[MaskPrediction], targets: Sequence[MaskTargets]
    ) -> dict[str, torch.Tensor]:
        """Weighted losses of one branch (stage 1): those of `KINDS`, also with `_0`, `_1`, ...

        Args:
            predictions: auxiliary ones in order, the final one last.
            targets: of the same clips.
        """
        names = prediction_names(len(predictions))
        device = predictions[-1].masks.device
        num_masks = mean_num_masks(targets, device)
        with torch.autocast(device_type=device.type, enabled=False):
            try:
                rounds = self.matcher.match_rounds(predictions, targets, self.points.draw, names)
            except NonFiniteCostError as error:
                return self._poisoned(error, predictions, _keys(names))
            return self._branch("video", predictions, targets, rounds, num_masks)

    def two_branches(
        self, predictions: ClipPredictions, targets: Sequence[MaskTargets]
    ) -> dict[str, torch.Tensor]:
        """Weighted losses of both branches (stage 2); those of the frame branch end in `_aux`.

        Every prediction has one matching for both branches, by the classes of the video branch
        and the masks of the frame branch.

        Args:
            targets: of the B clips; every frame answers for all classes of its clip.
        """
        names = prediction_names(len(predictions.video))
        masks = predictions.video[-1].masks
        own = [MaskTargets(t.labels, m[:, None]) for t in targets for m in t.masks.unbind(1)]
        # Averaged over ranks before anything can go wrong on one of them.
        num_masks = [mean_num_masks(rows, masks.device) for rows in (targets, own)]
        with torch.autocast(device_type=masks.device.type, enabled=False):
            both = [combined(*pair) for pair in zip(*predictions, strict=True)]
            try:
                rounds = self.matcher.match_rounds(both, targets, self.points.draw, names)
            except NonFiniteCostError as error:
                keys = [key + end for end in ("", "_aux") for key in _keys(names)]
                return self._poisoned(error, [*predictions.video, *predictions.frame], keys)
            repeated = [every_frame(pairs, masks.shape[2]) for pairs in rounds]
            of_video = self._branch("video", predictions.video, targets, rounds, num_masks[0])
            of_frames = self._branch("frame", predictions.frame, own, repeated, num_masks[1])
        return of_video | {f"{k}_aux": self.frame_weight * v for k, v in of_frames.items()}

    def _poisoned(
        self,
        error: NonFiniteCostError,
        predictions: Sequence[MaskPrediction],
        keys: Sequence[str],
    ) -> dict[str, torch.Tensor]:
        logger.error("%s; the losses of this step are NaN", error)
        return poisoned(predictions, keys)

    def _branch(
        self,
        branch: str,
        predictions: Sequence[MaskPrediction],
        targets: Sequence[MaskTargets],
        rounds: Sequence[Sequence[Rounds]],
        num_masks: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        masks = predictions[-1].masks
        num_rows = num_masks * masks.shape[2]  # the mean over the frames of a clip
        cells = [
            MaskTargets(target.labels, pixels_per_cell(target.masks, masks.shape[-2:]))
            for target in targets
        ]
        area = pixels_per_cell(torch.ones_like(targets[0].masks[:1, 0]), masks.shape[-2:])
        losses = {}
        for name, prediction, pairs in zip(
            prediction_names(len(predictions)), predictions, rounds, strict=True
        ):
            labels = query_labels(prediction.class_logits, targets, [p.both() for p in pairs])
            rows = matched_rows(prediction.masks, targets, [p.first for p in pairs])
            first = self.points.losses(rows, f"{branch}.{name}")
            rows = matched_rows(prediction.masks, cells, [p.second for p in pairs])
            second = covered_part_losses(rows, area)
            values = (
                self.class_weight * class_loss(prediction.class_logits, labels, self.empty_weight),
                self.mask_weight * first.mask / num_rows,
                self.dice_weight * first.dice / num_rows,
                self.second_mask_weight * second.mask / num_rows,
                self.second_dice_weight * second.dice / num_rows,
            )
            keys = [key + key_suffix(name) for key in KINDS]
            losses.update(zip(keys, values, strict=True))
        return losses


def _keys(names: Sequence[str]) -> list[str]:
    return [key + key_suffix(name) for name in names for key in KINDS]


def pixels_per_cell(masks: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """How many pixels of masks [..., H, W] each cell of (h, w) covers when it is enlarged to them.

    Enlarged by nearest neighbour, as `F.interpolate` does it.
    """
    rows, columns = (
        F.one_hot(
            F.interpolate(
                torch.arange(cells, dtype=masks.dtype, device=masks.device)[None, None],
                size=pixels,
                mode="nearest",
            )[0, 0].long(),
            cells,
        ).to(masks.dtype)
        for cells, pixels in zip(size, masks.shape[-2:], strict=True)
    )
    return rows.T @ masks @ columns


def covered_part_losses(rows: MaskRows, area: torch.Tensor) -> PointLosses:
    """Sums over rows of losses over all pixels, against the target where the row is above 0.5.

    Predictions enlarged by nearest neighbour are constant over a cell, so the sums over pixels
    are sums over cells.

    Args:
        rows: logits [R, h, w]; as truth the number of target pixels in every cell.
        area: number of pixels in every cell, [1, h, w].
    """
    logits, inside = rows
    probability = logits.sigmoid()
    covered = (probability > 0.5) * inside
    entropy = (F.softplus(logits) * area - logits * covered).sum((1, 2)) / area.sum()
    overlap = 2.0 * (probability * covered).sum((1, 2))
    total = (probability * area).sum((1, 2)) + covered.sum((1, 2))
    return PointLosses(entropy.sum(), (1.0 - (overlap + 1.0) / (total + 1.0)).sum())
