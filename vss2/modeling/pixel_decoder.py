"""The pixel decoder of Mask2Former: deformable attention over three levels, then one FPN step.

Cheng et al., Masked-attention Mask Transformer for Universal Image Segmentation, CVPR 2022,
section 3.2.1 and appendix A. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from vss2.d2.layers import Conv2d, get_norm
from vss2.errors import InputError
from vss2.layers.ms_deform_attn import MSDeformAttn

from .backbone.mit import map_to_tokens, tokens_to_map
from .losses import resize_scores
from .position_encoding import sine_position

NUM_LEVELS = 3
NUM_GROUPS = 32
# Tokens whose hidden values a processor's cache holds: a tenth less time and far less memory.
TOKENS_AT_ONCE = 1024


class PixelFeatures(NamedTuple):
    """What the pixel decoder makes of images.

    Attributes:
        mask_features: float32 [N, C, H/4, W/4], per-pixel embeddings.
        multi_scale: float32 maps [N, C, h, w] at strides 32, 16 and 8.
    """

    mask_features: torch.Tensor
    multi_scale: tuple[torch.Tensor, ...]


class LevelGeometry(NamedTuple):
    """Sizes of the levels and where their pixels lie.

    Attributes:
        spatial_shapes: int64 [L, 2], (height, width).
        level_start_index: int64 [L], first token of each level.
        reference_points: float32 [1, S, L, 2], (x, y) of each token's centre, 0 to 1, the same
            for all levels.
    """

    spatial_shapes: torch.Tensor
    level_start_index: torch.Tensor
    reference_points: torch.Tensor


@lru_cache(maxsize=8)
def level_geometry(sizes: tuple[tuple[int, int], ...], device: torch.device) -> LevelGeometry:
    """The geometry of levels of these (height, width). Do not write into it: it is shared."""
    with torch.inference_mode(False), torch.device("cpu"):
        shapes = torch.tensor(sizes)
        counts = shapes.prod(1)
        centres = []
        for height, width in sizes:
            y = (torch.arange(height, dtype=torch.float32) + 0.5) / height
            x = (torch.arange(width, dtype=torch.float32) + 0.5) / width
            grid = torch.stack((x[None].expand(height, -1), y[:, None].expand(-1, width)), dim=2)
            centres.append(grid.flatten(0, 1))
        points = torch.cat(centres)[None, :, None].expand(-1, -1, len(sizes), -1)
        start = counts.cumsum(0) - counts
        # The op reads shapes and starts as numbers: on a GPU each call would wait for them.
        return LevelGeometry(shapes, start, points.to(device))


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention over all levels and a feed-forward part, both post-norm."""

    def __init__(self, channels: int, num_heads: int, num_points: int, dim_feedforward: int):
        super().__init__()
        self.self_attn = MSDeformAttn(channels, NUM_LEVELS, num_heads, num_points)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, channels)
        self.norm2 = nn.LayerNorm(channels)

    def forward(
        self, tokens: torch.Tensor, position: torch.Tensor, geometry: LevelGeometry
    ) -> torch.Tensor:
        """tokens [N, S, C] and their codes [S, C] to new tokens [N, S, C]."""
        reference = geometry.reference_points.expand(tokens.shape[0], -1, -1, -1)
        attended = self.self_attn(
            tokens + position,
            reference,
            tokens,
            geometry.spatial_shapes,
            geometry.level_start_index,
        )
        tokens = self.norm1(tokens + attended)
        if torch.is_grad_enabled() or tokens.device.type != "cpu":
            return self._feed_forward(tokens)
        pieces = tokens.split(TOKENS_AT_ONCE, dim=1)
        return torch.cat([self._feed_forward(piece) for piece in pieces], dim=1)

    def _feed_forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.norm2(tokens + self.linear2(self.linear1(tokens).relu_()))


class DeformableEncoder(nn.Module):
    """Layers of deformable attention over the tokens of three maps, coarse to fine.

    Attributes:
        level_embed: [3, C], added to the position code of each level's tokens.
    """

    def __init__(
        self, channels: int, num_heads: int, num_points: int, dim_feedforward: int, num_layers: int
    ):
        super().__init__()
        layers = [
            DeformableEncoderLayer(channels, num_heads, num_points, dim_feedforward)
            for _ in range(num_layers)
        ]
        # A dict for the sake of the published name, transformer.encoder.layers.
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.level_embed = nn.Parameter(torch.empty(NUM_LEVELS, channels))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for layer in layers:
            layer.self_attn.reset_parameters()
        nn.init.normal_(self.level_embed)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Maps [N, C, h, w], coarse to fine, to as many of the same shapes."""
        sizes = tuple((x.shape[2], x.shape[3]) for x in maps)
        device = maps[0].device
        tokens = torch.cat([map_to_tokens(x) for x in maps], dim=1)  # [N, S, C]
        position = torch.cat(
            [
                sine_position(*size, tokens.shape[2], device) + embed
                for size, embed in zip(sizes, self.level_embed, strict=True)
            ]
        )
        geometry = level_geometry(sizes, device)
        for layer in self.encoder["layers"].children():
            tokens = layer(tokens, position.to(tokens.dtype), geometry)
        parts = tokens.split([height * width for height, width in sizes], dim=1)
        return [tokens_to_map(part, *size) for part, size in zip(parts, sizes, strict=True)]


class MSDeformAttnPixelDecoder(nn.Module):
    """Backbone maps to per-pixel embeddings and three maps for the transformer decoder.

    Args:
        in_channels: of the maps at strides 4, 8, 16 and 32.
        conv_dim: C, channels of all that comes out; a multiple of 32 (GroupNorm).
        num_heads, num_points: of the deformable attention, per level.
        dim_feedforward: hidden channels of the encoder layers.
        num_layers: of the encoder.

    Runs in float32, also under autocast: coordinates and the published models need it.

    Raises:
        InputError: a `conv_dim` that the norms or heads cannot divide.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        conv_dim: int = 256,
        num_heads: int = 8,
        num_points: int = 4,
        dim_feedforward: int = 1024,
        num_layers: int = 6,
    ):
        super().__init__()
        if conv_dim % NUM_GROUPS or conv_dim % num_heads:
            raise InputError(
                f"conv_dim of a pixel decoder is a multiple of {NUM_GROUPS} (groups of its norms) "
                f"and of its {num_heads} heads, got {conv_dim}"
            )
        # Coarse to fine: index 0 belongs to stride 32.
        projections = [nn.Conv2d(channels, conv_dim, 1) for channels in reversed(in_channels[1:])]
        self.input_proj = nn.ModuleList(
            nn.Sequential(conv, nn.GroupNorm(NUM_GROUPS, conv_dim)) for conv in projections
        )
        self.transformer = DeformableEncoder(
            conv_dim, num_heads, num_points, dim_feedforward, num_layers
        )
        self.adapter_1 = Conv2d(
            in_channels[0], conv_dim, 1, bias=False, norm=get_norm("GN", conv_dim)
        )
        self.layer_1 = Conv2d(
            conv_dim,
            conv_dim,
            3,
            padding=1,
            bias=False,
            norm=get_norm("GN", conv_dim),
            activation=F.relu_,
        )
        self.mask_features = nn.Conv2d(conv_dim, conv_dim, 1)
        for conv in projections:
            nn.init.xavier_uniform_(conv.weight)
        for conv in (self.adapter_1, self.layer_1, self.mask_features):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        for conv in (*projections, self.mask_features):
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, features: Mapping[str, torch.Tensor]) -> PixelFeatures:
        """Maps `stage1` .. `stage4` [N, C_s, h_s, w_s]; each has its own size."""
        fine = features["stage1"]
        with torch.autocast(device_type=fine.device.type, enabled=False):
            projected = [
                projection(features[f"stage{4 - index}"].float())
                for index, projection in enumerate(self.input_proj)
            ]
            multi_scale = self.transformer(projected)
            merged = self.adapter_1(fine.float())
            merged += resize_scores(multi_scale[-1], merged.shape[-2:])
            return PixelFeatures(self.mask_features(self.layer_1(merged)), tuple(multi_scale))
