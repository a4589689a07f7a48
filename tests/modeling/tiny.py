"""A segmentor small enough to check by hand: scores depend on every frame of the clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vss2.modeling.meta_arch import VideoSegmentor
from vss2.modeling.window import WindowRule


class TinySegmentor(VideoSegmentor):
    """Features are block means; a clip's scores weigh its frames by their position."""

    def __init__(self, window: WindowRule, num_classes: int = 3, eval_output: str = "labels"):
        super().__init__(num_classes=num_classes, window=window, eval_output=eval_output)
        generator = torch.Generator().manual_seed(0)
        self.mix = torch.nn.Conv2d(3, num_classes, 1, bias=False)
        self.mix.weight.data.normal_(generator=generator)
        self.encoded = 0
        self.decoded = 0

    def encode(self, images: torch.Tensor) -> dict[str, Any]:
        self.encoded += len(images)
        pooled = torch.nn.functional.avg_pool2d(images, 4)
        return {"map": pooled, "extra": (pooled.mean((2, 3)), images)}

    def keep(self, features: dict[str, Any]) -> dict[str, Any]:
        return {"map": features["map"], "extra": (features["extra"][0],)}

    def decode(self, clip: Sequence[Any], targets: Sequence[int]) -> torch.Tensor:
        self.decoded += 1
        context = sum((k + 1) * f["map"] for k, f in enumerate(clip)) / len(clip)
        bias = sum(f["extra"][0].sum() for f in clip)
        return torch.cat([self.mix(clip[t]["map"] + context) + bias for t in targets])

    def losses(
        self, features: dict[str, Any], sem_seg: torch.Tensor, labelled: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return {"loss": features["extra"][1].abs().mean()}


def random_frames(count: int, height: int = 32, width: int = 40, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
