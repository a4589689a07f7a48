"""What mask classification learns from: one binary mask per class that a clip shows."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .losses import IGNORE_LABEL


class MaskTargets(NamedTuple):
    """Targets of one clip.

    Attributes:
        labels: int64 [n], the classes present in any frame, ascending; n may be 0.
        masks: float32 [n, T, H, W], 0 or 1; of a frame without the class, all 0.
    """

    labels: torch.Tensor
    masks: torch.Tensor


def mask_targets(sem_seg: torch.Tensor) -> list[MaskTargets]:
    """Targets of clips from label maps int64 [B, T, H, W], 255 ignored."""
    targets = []
    for clip in sem_seg:
        labels = clip.unique()
        labels = labels[labels != IGNORE_LABEL]
        masks = (clip[None] == labels[:, None, None, None]).float()
        targets.append(MaskTargets(labels, masks))
    return targets
