"""The masked-attention transformer decoder of Mask2Former, for images and for clips.

Cheng et al., Masked-attention Mask Transformer for Universal Image Segmentation, CVPR 2022,
section 3.2; for clips Cheng et al., Mask2Former for Video Instance Segmentation, arXiv
2112.10764. Parameter names are those of the published checkpoints, the same for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from .backbone.mit import map_to_tokens
from .losses import resize_scores
from .position_encoding import clip_sine_position, sine_position
from .transformer_layers import MLP, CrossAttentionLayer, FeedForwardLayer, SelfAttentionLayer

NUM_LEVELS = 3


class MaskPrediction(NamedTuple):
    """What queries predict for B clips of T frames; an image is a clip of one frame.

    Attributes:
        class_logits: [B, Q, K+1], the last class is "no object".
        masks: [B, Q, T, h, w], logits.
    """

    class_logits: torch.Tensor
    masks: torch.Tensor


class LevelMemory(NamedTuple):
    """One level of a clip as attention reads it.

    Attributes:
        key, value: [B, T*h*w, C], frame-major; the key is the value plus its position code.
        size: (h, w).
    """

    key: torch.Tensor
    value: torch.Tensor
    size: tuple[int, int]


def mask_logits(embedding: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Dot products of query embeddings [B, Q, C] and features [B, T, C, h, w]: [B, Q, T, h, w]."""
    product = embedding[:, None] @ features.flatten(3)  # [B, T, Q, h*w]
    return product.transpose(1, 2).unflatten(3, features.shape[-2:])


def attention_features(
    features: torch.Tensor, sizes: Sequence[Sequence[int]], fast: bool
) -> list[torch.Tensor]:
    """For every level the mask features whose logits give its attention mask, all that it needs.

    Args:
        features: [B, T, C, h, w].
        sizes: (h', w') of the levels.
        fast: features resized to the level, so that logits need no resize. Else the pixels that the
            resize of the logits would read: where a level is a quarter or an eighth as large, the
            inner 2x2 of each of its cells, and all pixels otherwise.
    """
    if fast:
        frames = features.flatten(0, 1)
        return [resize_scores(frames, size).unflatten(0, features.shape[:2]) for size in sizes]
    return [_inner_pixels(features, size) for size in sizes]


def _inner_pixels(features: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The inner 2x2 of a level's cells, [B, T, C, 2h', 2w'], where these are even squares."""
    height, width = features.shape[-2:]
    side = height // size[0]
    if side < 4 or side % 2 or (side * size[0], side * size[1]) != (height, width):
        return features
    inner = slice(side // 2 - 1, side // 2 + 1)
    cells = features.unflatten(4, (-1, side)).unflatten(3, (-1, side))
    return cells[:, :, :, :, inner, :, inner].flatten(5, 6).flatten(3, 4)


def attention_mask(masks: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Where queries must not look: the background of their own masks, at the size of a level.

    Args:
        masks: [B, Q, T, h, w], logits.
        size: (h', w') of the level; logits of another size are resized bilinearly.

    Returns:
        bool [B, Q, T, h', w'], True = forbidden, without gradient. Rows may forbid everything,
        see `free_empty_rows`.
    """
    resized = resize_scores(masks.detach().flatten(1, 2), size)
    return (resized.sigmoid() < 0.5).unflatten(1, masks.shape[1:3])


def free_empty_rows(forbidden: torch.Tensor) -> torch.Tensor:
    """Allow everything in rows [..., M] that forbid everything."""
    return forbidden & ~forbidden.all(dim=-1, keepdim=True)


def semantic_scores(prediction: MaskPrediction) -> torch.Tensor:
    """Class scores of every pixel: sum over queries of class and mask probability (section 3.3).

    Returns:
        float32 [B, T, K, h, w].
    """
    with torch.autocast(device_type=prediction.masks.device.type, enabled=False):
        classes = prediction.class_logits.float().softmax(-1)[..., :-1]  # [B, Q, K]
        masks = prediction.masks.float().sigmoid().transpose(1, 2)  # [B, T, Q, h, w]
        scores = classes.transpose(1, 2)[:, None] @ masks.flatten(3)
        return scores.unflatten(3, masks.shape[-2:])


class MaskedAttentionDecoder(nn.Module):
    """Learned queries that look at the foreground of their own masks, layer by layer.

    Args:
        num_classes: K.
        video: whether keys have a code of time, and clips may have several frames.
        num_queries: Q.
        hidden_dim: C; that of the pixel decoder.
        num_heads: of attention.
        dim_feedforward: hidden channels of the feed-forward parts.
        num_layers: each reads one of the three levels, coarse to fine and again.
        fast_attention_masks: where only the last prediction is wanted, make attention masks from
            features resized once per level, instead of resizing the masks of every layer. Equal
            but for rounding, which can flip a mask's border pixel.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        video: bool = False,
        num_queries: int = 100,
        hidden_dim: int = 256,
        num_heads: int = 8,
        dim_feedforward: int = 2048,
        num_layers: int = 9,
        fast_attention_masks: bool = False,
    ):
        super().__init__()
        self.video = video
        self.fast_attention_masks = fast_attention_masks
        layers = range(num_layers)
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, num_heads) for _ in layers
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, num_heads) for _ in layers
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(hidden_dim, dim_feedforward) for _ in layers
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(NUM_LEVELS, hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim)

    def forward(
        self,
        multi_scale: Sequence[torch.Tensor],
        mask_features: torch.Tensor,
        num_frames: int = 1,
        auxiliary: bool = False,
    ) -> list[MaskPrediction]:
        """Predictions of B clips.

        Args:
            multi_scale: maps [B*T, C, h, w] at strides 32, 16 and 8, clip-major.
            mask_features: [B*T, C, H/4, W/4].
            num_frames: T.
            auxiliary: give the predictions before the first and after every layer, else that after
                the last one alone.

        Returns:
            Predictions in order, the last one is the answer.
        """
        memories = [self._memory(level, x, num_frames) for level, x in enumerate(multi_scale)]
        features = mask_features.unflatten(0, (-1, num_frames))
        sources = [features] * NUM_LEVELS
        if not auxiliary:
            sizes = [memory.size for memory in memories]
            sources = attention_features(features, sizes, self.fast_attention_masks)
        batch = features.shape[0]
        query = self.query_feat.weight.expand(batch, -1, -1)
        position = self.query_embed.weight.expand(batch, -1, -1)
        predictions: list[MaskPrediction] = []
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for index, (cross_attention, self_attention, feed_forward) in enumerate(layers):
            level = index % NUM_LEVELS
            key, value, size = memories[level]
            normed = self.decoder_norm(query)
            masks = mask_logits(self.mask_embed(normed), sources[level])
            if auxiliary:
                predictions.append(MaskPrediction(self.class_embed(normed), masks))
            forbidden = free_empty_rows(attention_mask(masks, size).flatten(2))
            query = cross_attention(query, position, key, value, forbidden)
            query = feed_forward(self_attention(query, position))
        normed = self.decoder_norm(query)
        masks = mask_logits(self.mask_embed(normed), features)
        predictions.append(MaskPrediction(self.class_embed(normed), masks))
        return predictions

    def _memory(self, level: int, feature: torch.Tensor, num_frames: int) -> LevelMemory:
        """A map [B*T, C, h, w] with its level's embedding and position codes."""
        height, width = feature.shape[-2:]
        channels, device = feature.shape[1], feature.device
        value = map_to_tokens(feature) + self.level_embed.weight[level]
        value = value.unflatten(0, (-1, num_frames)).flatten(1, 2)
        if self.video:
            code = clip_sine_position(num_frames, height, width, channels, device).flatten(0, 1)
        else:
            assert num_frames == 1, "the image decoder takes single frames"
            code = sine_position(height, width, channels, device)
        return LevelMemory(value + code.to(value.dtype), value, (height, width))
