"""What the tests of this project share: models filled by the fixtures' rule, and their inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vss2.modeling.backbone import MixTransformer
from vss2.projects.cffm.model import CFFM, CFFMPlusPlus
from vss2.testing.fixtures import filled, filled_state_dict, image_clip, synthetic_label

COUNTER = "decode_head.linear_fuse.bn.num_batches_tracked"


def tensor_layout(description: dict[str, Any]) -> dict[str, list[int]]:
    """Published names and shapes, without the index buffers, which this code computes."""
    return description["layout"] | {COUNTER: []}


def fill(model: torch.nn.Module, description: dict[str, Any]) -> None:
    model.load_state_dict(filled_state_dict(tensor_layout(description), description["seed"]))


def fixture_model(description: dict[str, Any]) -> CFFM:
    """The fixture's model with its weights, in eval mode."""
    config = description["config"]
    kind = CFFMPlusPlus if description["fixture"].startswith("cffmpp") else CFFM
    model = kind(
        backbone=MixTransformer(config["backbone"].removeprefix("mit_")),
        num_classes=config["num_classes"],
        focal_depth=config["depths"],
    )
    fill(model, description)
    return model.eval()


def clip_of(seed: int, height: int, width: int, frames: int = 4) -> torch.Tensor:
    """uint8 [T, 3, H, W]."""
    clip = torch.from_numpy(image_clip(frames, height, width, seed))
    return clip.permute(0, 3, 1, 2).contiguous()


def fixture_prototypes(clip: int, seed: int) -> torch.Tensor:
    """float32 [100, 256]."""
    values = filled(f"centers.vid{clip}", (1, 100, 256), seed) * np.sqrt(100 * 256)
    return torch.from_numpy(values.astype(np.float32))[0]


def samples_of(
    clips: list[torch.Tensor], prototypes: list[torch.Tensor] | None = None, void_columns: int = 0
) -> list[dict[str, Any]]:
    """Training samples with the fixtures' labels; the last clip's right columns are void."""
    height, width = clips[0].shape[-2:]
    samples: list[dict[str, Any]] = []
    for index, clip in enumerate(clips):
        labels = torch.from_numpy(synthetic_label(len(clip), height, width, index))
        samples.append(
            {
                "frames": clip,
                "sem_seg": labels,
                "labelled": torch.ones(len(clip), dtype=torch.bool),
                "image_size": (height, width),
            }
        )
        if prototypes is not None:
            samples[-1]["prototypes"] = prototypes[index]
    if void_columns:
        samples[-1]["sem_seg"][..., width - void_columns :] = 255
    return samples


def tiny_model(plus_plus: bool = False, num_classes: int = 5, **options: Any) -> CFFM:
    """A narrow two-block model with random weights, tables included, in eval mode."""
    torch.manual_seed(0)
    kind = CFFMPlusPlus if plus_plus else CFFM
    model = kind(
        backbone=MixTransformer("b0"),
        num_classes=num_classes,
        focal_depth=2,
        embed_dim=16,
        num_heads=2,
        **options,
    )
    for name, parameter in model.named_parameters():
        if "bias_table" in name:
            torch.nn.init.normal_(parameter)
    return model.eval()
