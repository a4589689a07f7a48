"""Small models of both stages with random weights, and clips, for the tests of this project."""

from __future__ import annotations

from typing import Any

import torch

from vss2.modeling.backbone import MixTransformer
from vss2.modeling.criterion import PointSampler
from vss2.projects.themask import SingleFrameTHEMask, THEMask
from vss2.projects.themask.criterion import TwoRoundCriterion
from vss2.projects.themask.matching import TwoRoundMatcher
from vss2.testing.fixtures import image_clip

NUM_CLASSES = 5
NARROW = {
    "num_queries": 12,
    "hidden_dim": 32,
    "num_heads": 4,
    "encoder_layers": 1,
    "encoder_feedforward": 64,
    "decoder_layers": 4,
    "decoder_feedforward": 64,
}


def tiny_criterion(second_cost: str, num_classes: int = NUM_CLASSES) -> TwoRoundCriterion:
    return TwoRoundCriterion(
        num_classes,
        matcher=TwoRoundMatcher(second_cost, num_points=64),
        points=PointSampler(64),
    )


def sharpened(model: Any) -> Any:
    """Masks that are clearly on or off, so that rounding flips no key."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mask_embed" in name or "class_embed" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def stage1(num_classes: int = NUM_CLASSES, **options: Any) -> SingleFrameTHEMask:
    torch.manual_seed(0)
    return sharpened(
        SingleFrameTHEMask(
            backbone=MixTransformer("b0"),
            num_classes=num_classes,
            criterion=tiny_criterion("mask", num_classes),
            **(NARROW | options),
        )
    )


def stage2(num_classes: int = NUM_CLASSES, **options: Any) -> THEMask:
    torch.manual_seed(0)
    return sharpened(
        THEMask(
            backbone=MixTransformer("b0"),
            num_classes=num_classes,
            criterion=tiny_criterion("full", num_classes),
            **(NARROW | options),
        )
    )


def frames_of(count: int, seed: int = 0, height: int = 64, width: int = 96) -> torch.Tensor:
    """uint8 [T, 3, H, W]."""
    clip = torch.from_numpy(image_clip(count, height, width, seed))
    return clip.permute(0, 3, 1, 2).contiguous()


def samples_of(clips: int, frames: int) -> list[dict[str, Any]]:
    """Training samples with vertical stripes of classes, their first rows void."""
    labels = (torch.arange(96) // 24).expand(frames, 64, 96).clone()
    labels[:, :4] = 255
    return [
        {
            "frames": frames_of(frames, seed),
            "sem_seg": labels + (labels != 255) * (seed % 2),
            "labelled": torch.ones(frames, dtype=torch.bool),
            "image_size": (64, 96),
        }
        for seed in range(clips)
    ]
