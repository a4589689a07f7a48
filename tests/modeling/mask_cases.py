"""Small predictions, targets and models of mask classification that tests share."""

from __future__ import annotations

from typing import Any

import torch

from vss2.modeling.backbone import MixTransformer
from vss2.modeling.criterion import MaskCriterion, PointSampler
from vss2.modeling.mask2former import Mask2Former
from vss2.modeling.mask_targets import MaskTargets, mask_targets
from vss2.modeling.matcher import HungarianMatcher
from vss2.modeling.transformer_decoder import MaskPrediction

from .tiny import random_frames

NUM_CLASSES = 5


def predictions(
    batch: int = 2, queries: int = 6, frames: int = 1, count: int = 2, seed: int = 0
) -> list[MaskPrediction]:
    """`count` predictions with random logits that require gradients."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    return [
        MaskPrediction(
            random(batch, queries, NUM_CLASSES + 1), random(batch, queries, frames, 8, 8)
        )
        for _ in range(count)
    ]


def labels(*items: tuple[int, ...], frames: int = 1) -> torch.Tensor:
    """Label maps int64 [B, T, 16, 16] with columns of the given classes, 255 for the rest."""
    maps = torch.full((len(items), frames, 16, 16), 255)
    for item, classes in zip(maps, items, strict=True):
        for column, label in enumerate(classes):
            item[..., 2 * column : 2 * column + 2] = label
    return maps


def targets(*items: tuple[int, ...], frames: int = 1) -> list[MaskTargets]:
    return mask_targets(labels(*items, frames=frames))


def fixed_points(name: str, rows: int, points: int, device: torch.device) -> torch.Tensor:
    """The same points for every row and purpose."""
    generator = torch.Generator().manual_seed(3)
    return torch.rand(points, 2, generator=generator).expand(rows, -1, -1)


def criterion(num_classes: int = NUM_CLASSES, **options: Any) -> MaskCriterion:
    return MaskCriterion(
        num_classes, matcher=HungarianMatcher(num_points=32), points=PointSampler(32), **options
    )


def mask2former(num_classes: int = NUM_CLASSES, **options: Any) -> Mask2Former:
    """A model small enough for a test, the same at every call."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "backbone": MixTransformer("b0"),
        "criterion": criterion(num_classes),
        "num_queries": 8,
        "hidden_dim": 32,
        "num_heads": 4,
        "encoder_layers": 1,
        "encoder_feedforward": 32,
        "decoder_layers": 3,
        "decoder_feedforward": 32,
    }
    return Mask2Former(num_classes=num_classes, **arguments | options)


def sample(frames: int = 1, seed: int = 0, size: tuple[int, int] = (64, 64)) -> dict[str, Any]:
    """One training sample with blocks of classes 0 to 4."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, NUM_CLASSES, (frames, 4, 4), generator=generator)
    blocks = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    return {
        "frames": random_frames(frames, *size, seed=seed),
        "sem_seg": blocks[:, : size[0], : size[1]],
        "labelled": torch.ones(frames, dtype=torch.bool),
        "image_size": size,
    }
