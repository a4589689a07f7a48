"""The decode heads of CFFM and CFFM++; parameter names are those of the published checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from vss2.modeling.losses import resize_scores
from vss2.modeling.segformer import SegFormerHead

from .focal import NORM_EPS, TABLE_STD, WINDOW, FocalDecoder, Mlp, Pooled

PROTOTYPE_WEIGHT = 0.5


class CFFMHead(SegFormerHead):
    """SegFormer's head with a second classifier on what focal attention mines from the clip.

    Args:
        in_channels: channels of stages 1 to 4.
        num_classes: K.
        focal_depth: blocks of focal attention: 1 in B0, 2 in B1 and B2, 4 in B5.
        embed_dim: E.
        num_heads: of the attention.
        norm: of the fusing convolution, see `FuseConv`.
        dropout: rate at which whole channels are dropped before each classifier.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        num_classes: int,
        focal_depth: int,
        embed_dim: int = 256,
        num_heads: int = 8,
        norm: str = "BN",
        dropout: float = 0.1,
    ):
        super().__init__(
            in_channels=in_channels,
            num_classes=num_classes,
            embed_dim=embed_dim,
            norm=norm,
            dropout=dropout,
        )
        self.linear_pred2 = nn.Conv2d(2 * embed_dim, num_classes, 1)
        self.decoder_focal = FocalDecoder(embed_dim, focal_depth, num_heads)

    def mine(self, target: torch.Tensor, references: Sequence[Pooled]) -> torch.Tensor:
        """Scores of the target frames from the clip.

        Args:
            target: embedding of the target frames at stride 8, [B, E, h, w].
            references: `decoder_focal.pool_references` of the reference frames.

        Returns:
            [B, K, h, w], stride 8.
        """
        mined = self.decoder_focal(target, references)
        return self.linear_pred2(self.dropout(torch.cat((target, mined), dim=1)))


class PrototypeKeys(NamedTuple):
    """Keys and values [B, heads, P, d] of a video's prototypes."""

    key: torch.Tensor
    value: torch.Tensor


class PrototypeAttention(nn.Module):
    """Each token attends to all prototypes of its video, without bias or mask.

    The release cuts windows around this; since the keys are the same for all tokens of a video, the
    windows change nothing. `proj`, `relative_position_bias_table` and two thirds of `qkv` are
    published tensors without effect.
    """

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.qkv_cluster = nn.Linear(channels, 2 * channels)
        self.proj_cluster = nn.Linear(channels, channels)
        self.proj = nn.Linear(channels, channels).requires_grad_(False)
        table = nn.init.trunc_normal_(torch.empty((2 * WINDOW - 1) ** 2, num_heads), std=TABLE_STD)
        self.relative_position_bias_table = nn.Parameter(table, requires_grad=False)

    def keys(self, prototypes: torch.Tensor) -> PrototypeKeys:
        """prototypes [B, P, C], normed."""
        pair = self.qkv_cluster(prototypes).unflatten(2, (2, self.num_heads, -1))
        return PrototypeKeys(*pair.permute(2, 0, 3, 1, 4))

    def forward(self, tokens: torch.Tensor, keys: PrototypeKeys) -> torch.Tensor:
        """tokens [B, N, C], normed, to the same shape."""
        channels = tokens.shape[2]
        query = F.linear(tokens, self.qkv.weight[:channels], self.qkv.bias[:channels])
        query = query.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(query, keys.key, keys.value)
        return self.proj_cluster(out.transpose(1, 2).flatten(2))


class PrototypeBlock(nn.Module):
    """Prototype attention and feed-forward; one norm serves tokens and prototypes."""

    def __init__(self, channels: int, num_heads: int, mlp_ratio: int = 4):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attn = PrototypeAttention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp = Mlp(channels, mlp_ratio * channels)

    def keys(self, prototypes: torch.Tensor) -> PrototypeKeys:
        """prototypes [B, P, C]."""
        return self.attn.keys(self.norm1(prototypes))

    def forward(self, tokens: torch.Tensor, keys: PrototypeKeys) -> torch.Tensor:
        """tokens [B, N, C] to the same shape."""
        tokens = tokens + self.attn(self.norm1(tokens), keys)
        return tokens + self.mlp(self.norm2(tokens))


class PrototypeDecoder(nn.Module):
    """One `PrototypeBlock`; a module of its own for its name."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.blocks = nn.ModuleList([PrototypeBlock(channels, num_heads)])

    def keys(self, prototypes: torch.Tensor) -> PrototypeKeys:
        """prototypes [B, P, C], as clustered."""
        return self.blocks[0].keys(prototypes)

    def forward(self, target: torch.Tensor, keys: PrototypeKeys) -> torch.Tensor:
        """[B, C, h, w] to the same shape."""
        tokens = self.blocks[0](target.flatten(2).transpose(1, 2), keys)
        return tokens.transpose(1, 2).unflatten(2, target.shape[-2:])


class CFFMPlusPlusHead(CFFMHead):
    """CFFM's head with a third classifier on what the target finds in the video's prototypes.

    Only `linear_pred3` and the effective parts of `decoder_swin` are trained.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        num_classes: int,
        focal_depth: int,
        embed_dim: int = 256,
        num_heads: int = 8,
        norm: str = "BN",
        dropout: float = 0.1,
    ):
        super().__init__(
            in_channels=in_channels,
            num_classes=num_classes,
            focal_depth=focal_depth,
            embed_dim=embed_dim,
            num_heads=num_heads,
            norm=norm,
            dropout=dropout,
        )
        self.requires_grad_(False)
        self.linear_pred3 = nn.Conv2d(embed_dim, num_classes, 1)
        self.decoder_swin = PrototypeDecoder(embed_dim, num_heads)

    def compare(self, target: torch.Tensor, keys: PrototypeKeys) -> torch.Tensor:
        """Scores of the target frames from the prototypes.

        Args:
            target: embedding of the target frames at stride 8, [B, E, h, w].
            keys: `decoder_swin.keys` of each frame's video.

        Returns:
            [B, K, h, w], stride 8.
        """
        return self.linear_pred3(self.dropout(self.decoder_swin(target, keys)))


def half_size(embedding: torch.Tensor) -> torch.Tensor:
    """Embedding at stride 4 to stride 8: [N, E, h, w] to [N, E, h//2, w//2]."""
    height, width = embedding.shape[-2:]
    return resize_scores(embedding, (height // 2, width // 2))
