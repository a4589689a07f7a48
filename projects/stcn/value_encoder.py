"""The value encoder: image, an object's mask and the other objects' masks to the object's value."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vss2.modeling.backbone import ResNet

from .blocks import CBAM, ResBlock, add_shared

STAGES = ("layer1", "layer2", "layer3")


class FeatureFuser(nn.Module):
    """Features of image and mask, and those of the image alone, to the value.

    Args:
        in_channels: of both together.
        channels: of the value.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.block1 = ResBlock(in_channels, channels)
        self.attention = CBAM(channels)
        self.block2 = ResBlock(channels, channels)

    def forward(self, x: torch.Tensor, f16: torch.Tensor) -> torch.Tensor:
        """x [B*O, C, h, w] and f16 [B, C', h, w] to [B*O, channels, h, w]."""
        x = self.block1(x, f16)
        return self.block2(x + self.attention(x))


class ValueEncoder(ResNet):
    """A ResNet up to stride 16 whose convolutions have biases, and the fuser.

    Args:
        f16_channels: of the key encoder's map at stride 16.
        value_dim: channels of the value.
        single_object: the input is image and mask; else also the sum of the other objects' masks.
        depth, stem_channels: of the ResNet.
    """

    def __init__(
        self,
        *,
        f16_channels: int,
        value_dim: int = 512,
        single_object: bool = False,
        depth: int = 18,
        stem_channels: int = 64,
    ):
        super().__init__(
            depth,
            in_channels=4 if single_object else 5,
            strides=(1, 2, 2),
            conv_bias=True,
            stem_channels=stem_channels,
            stage_names=STAGES,
        )
        self.single_object = single_object
        with torch.no_grad():
            nn.init.orthogonal_(self.conv1.weight[:, 3:])
        self.fuser = FeatureFuser(self.channels[-1] + f16_channels, value_dim)

    def forward(  # type: ignore[override]
        self, images: torch.Tensor, f16: torch.Tensor, masks: torch.Tensor
    ) -> torch.Tensor:
        """Values of every object of every image.

        Args:
            images: [B, 3, H, W], normalised.
            f16: [B, C, H/16, W/16] of the key encoder.
            masks: [B, O, H, W] in [0, 1].

        Returns:
            [B*O, value_dim, H/16, W/16].
        """
        x = F.max_pool2d(self.bn1(self._stem(images, masks)).relu_(), 3, stride=2, padding=1)
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        return self.fuser(x, f16)

    def _stem(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """The first convolution; what it makes of an image is computed once for all objects."""
        planes = [masks] if self.single_object else [masks, sum_of_others(masks)]
        own = torch.stack(planes, dim=2).flatten(0, 1)  # [B*O, 1 or 2, H, W]
        if masks.shape[1] == 1:
            return self.conv1(torch.cat([images, own], dim=1))
        weight, bias = self.conv1.weight, self.conv1.bias
        shared = F.conv2d(images, weight[:, :3], bias, stride=2, padding=3)
        return add_shared(F.conv2d(own, weight[:, 3:], stride=2, padding=3), shared)


def sum_of_others(masks: torch.Tensor) -> torch.Tensor:
    """For each object the sum of the other objects' masks [B, O, H, W], not clamped.

    Summed without the object's own, not as a difference: what is tiny must stay exact.
    """
    others = [
        torch.cat([masks[:, :i], masks[:, i + 1 :]], dim=1).sum(1) for i in range(masks.shape[1])
    ]
    return torch.stack(others, dim=1)
