"""Registries of networks, the base class of backbones, and resizing of scores."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .layers import ShapeSpec
from .utils.registry import Registry

__all__ = [
    "BACKBONE_REGISTRY",
    "META_ARCH_REGISTRY",
    "SEM_SEG_HEADS_REGISTRY",
    "Backbone",
    "sem_seg_postprocess",
]

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = "Whole models."
BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = "Networks from an image to feature maps."
SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
SEM_SEG_HEADS_REGISTRY.__doc__ = "Networks from feature maps to class scores."


class Backbone(nn.Module, metaclass=ABCMeta):
    """A network from an image to named feature maps.

    A subclass sets `_out_features` (names), `_out_feature_channels` and `_out_feature_strides`
    (by name), or overrides `output_shape`.
    """

    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    @abstractmethod
    def forward(self, *args: Any) -> dict[str, torch.Tensor]:
        """Feature maps (N, C, H, W) by name."""

    @property
    def size_divisibility(self) -> int:
        """What the input's height and width must be multiples of; 0 if any will do."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further wishes for padding, see `ImageList.from_tensors`."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map."""
        return {
            name: ShapeSpec(
                channels=self._out_feature_channels[name], stride=self._out_feature_strides[name]
            )
            for name in self._out_features
        }


def sem_seg_postprocess(
    result: torch.Tensor, img_size: tuple[int, int], output_height: int, output_width: int
) -> torch.Tensor:
    """Cut the padding off a map of scores and resize it (bilinear) to the size asked for.

    Args:
        result: (K, H, W) scores of a padded image.
        img_size: (height, width) of that image without padding.

    Returns:
        (K, output_height, output_width)
    """
    height, width = img_size
    return F.interpolate(
        result[:, :height, :width].unsqueeze(0),
        size=(output_height, output_width),
        mode="bilinear",
        align_corners=False,
    )[0]
