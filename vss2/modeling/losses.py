"""Losses of semantic segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

IGNORE_LABEL = 255


def resize_scores(scores: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bilinear resize (align_corners=False) of scores [N, K, h, w] to `size` = (H, W)."""
    if tuple(scores.shape[-2:]) == tuple(size):
        return scores
    return F.interpolate(scores, size=list(size), mode="bilinear", align_corners=False)


def pixel_cross_entropy(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy averaged over ALL pixels, ignored ones included.

    The published VSPW recipes average per-pixel losses in which ignored pixels are zero, so a
    padded crop weighs less than a full one.

    Args:
        scores: float [N, K, h, w], resized bilinearly to the labels' size first.
        labels: int64 [N, H, W], 255 is ignored.
    """
    with torch.autocast(device_type=scores.device.type, enabled=False):
        scores = resize_scores(scores.float(), labels.shape[-2:])
        total = F.cross_entropy(scores, labels, ignore_index=IGNORE_LABEL, reduction="sum")
        return total / labels.numel()


@torch.no_grad()
def pixel_accuracy(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Per cent of all pixels, ignored ones included, whose best class is the label (scalar)."""
    prediction = resize_scores(scores.float(), labels.shape[-2:]).argmax(1)
    return (prediction == labels).float().mean() * 100.0
