"""The temporal aggregation decoder: queries of single frames and queries of the whole clip.

An et al., Temporal-aware Hierarchical Mask Classification for Video Semantic Segmentation, BMVC
2023, arXiv 2309.08020. Parameter names are those of the release.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from vss2.modeling.backbone.mit import map_to_tokens
from vss2.modeling.position_encoding import sine_position
from vss2.modeling.transformer_decoder import (
    NUM_LEVELS,
    LevelMemory,
    MaskPrediction,
    attention_features,
    attention_mask,
    free_empty_rows,
    mask_logits,
)
from vss2.modeling.transformer_layers import (
    MLP,
    Attention,
    CrossAttentionLayer,
    FeedForwardLayer,
    SelfAttentionLayer,
)


class ClipPredictions(NamedTuple):
    """What both branches predict for B clips of T frames, in the order of the layers.

    Attributes:
        video: one class per query and clip; B clips of T frames.
        frame: one class per query and frame; B*T clips of one frame, clip-major.
    """

    video: list[MaskPrediction]
    frame: list[MaskPrediction]


class TemporalAggregation(nn.Module):
    """Starts both kinds of queries and carries what frames found into those of the clip.

    `reference_points` is a published tensor without effect.

    Args:
        channels: C.
        num_heads: of attention.
        hidden: channels inside the feed-forward parts.
        dropout: everywhere in here, the weights of attention included.
    """

    def __init__(self, channels: int, num_heads: int, hidden: int, dropout: float):
        super().__init__()
        self.self_attn = Attention(channels, num_heads, dropout)
        self.norm2 = nn.LayerNorm(channels)
        self.self_attn_box = Attention(channels, num_heads, dropout)
        self.norm2_box = nn.LayerNorm(channels)
        self.cross_attn = Attention(channels, num_heads, dropout)
        self.norm1_box = nn.LayerNorm(channels)
        self.linear1_box = nn.Linear(channels, hidden)
        self.linear2_box = nn.Linear(hidden, channels)
        self.norm3_box = nn.LayerNorm(channels)
        self.time_attention_weights = nn.Linear(channels, 1)
        self.time_attention = nn.Linear(channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.norm3 = nn.LayerNorm(channels)
        self.reference_points = nn.Linear(channels, 2)
        self.dropout = nn.Dropout(dropout)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.zeros_(self.reference_points.bias)
        self.reference_points.requires_grad_(False)

    def start_video(self, query: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The queries of clips [B, Q, C] before they have seen anything."""
        placed = query + position
        return self.norm2(query + self.dropout(self.self_attn(placed, placed, query)))

    def start_context(self, query: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """What the queries of all frames of a clip ask first, [B, Q, C]."""
        placed = query + position
        return self.norm2_box(query + self.dropout(self.self_attn_box(placed, placed, query)))

    def start_frames(
        self,
        context: torch.Tensor,
        position: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> torch.Tensor:
        """The queries of frames [N, Q, C] after one look at all levels of their frame.

        Args:
            context: `start_context` of each frame's clip, [N, Q, C].
            position: of the queries.
            key, value: [N, S, C], tokens of all levels.
        """
        seen = self.cross_attn(context + position, key, value)
        frames = self.norm1_box(context + self.dropout(seen))
        hidden = self.dropout(self.linear1_box(frames).relu())
        return self.norm3_box(frames + self.dropout(self.linear2_box(hidden)))

    def combine(self, video: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """Queries of clips [B, Q, C] with what those of their frames [B, T, Q, C] found."""
        weights = self.time_attention_weights(frames).softmax(dim=1)
        found = (weights * self.time_attention(frames)).sum(dim=1)
        video = self.norm1(video + self.dropout(found))
        hidden = self.dropout(self.linear1(video).relu())
        return self.norm3(video + self.dropout(self.linear2(hidden)))


class TemporalDecoder(nn.Module):
    """Frame queries read their own frame, video queries gather from them after every layer.

    Frame queries look where the masks of the video queries are; video queries never see a frame.
    All nine layers share one `TemporalAggregation`.

    The release adds a code of time to keys. All keys of a frame get the same one, which a softmax
    over the keys of one frame does not see, so there is none here. What a frame's queries start
    with depends on that frame alone, and is made once however many clips the frame is in.

    Args:
        num_classes: K.
        num_queries: Q, of each kind.
        hidden_dim: C; that of the pixel decoder.
        num_heads: of attention.
        dim_feedforward: hidden channels of the feed-forward parts.
        num_layers: each reads one of the three levels, coarse to fine and again.
        dropout: in the aggregation; there is none elsewhere.
        fast_attention_masks: see `MaskedAttentionDecoder`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        num_queries: int = 100,
        hidden_dim: int = 256,
        num_heads: int = 8,
        dim_feedforward: int = 2048,
        num_layers: int = 9,
        dropout: float = 0.1,
        fast_attention_masks: bool = False,
    ):
        super().__init__()
        self.fast_attention_masks = fast_attention_masks
        layers = range(num_layers)
        # The name is that of the checkpoints; nothing in it is deformable.
        self.deformabel_transformer_cross_attention_layers = TemporalAggregation(
            hidden_dim, num_heads, dim_feedforward, dropout
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, num_heads) for _ in layers
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, num_heads) for _ in layers
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(hidden_dim, dim_feedforward) for _ in layers
        )
        self.decoder_norm1 = nn.LayerNorm(hidden_dim)
        self.decoder_norm2 = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(NUM_LEVELS, hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.class_embed_aux = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim)
        self.mask_embed_aux = MLP(hidden_dim)

    @property
    def aggregation(self) -> TemporalAggregation:
        return self.deformabel_transformer_cross_attention_layers

    def look(self, multi_scale: Sequence[torch.Tensor], num_frames: int = 1) -> torch.Tensor:
        """The frame queries before the first layer.

        Args:
            multi_scale: maps [B*T, C, h, w] at strides 32, 16 and 8, clip-major.
            num_frames: T.

        Returns:
            [B*T, Q, C]; but for dropout it does not matter how frames make up clips.
        """
        memories = self._memories(multi_scale)
        key = torch.cat([memory.key for memory in memories], dim=1)
        value = torch.cat([memory.value for memory in memories], dim=1)
        query, position = self._learned(len(value) // num_frames)
        context = self.aggregation.start_context(query, position)
        context = context.repeat_interleave(num_frames, dim=0)
        return self.aggregation.start_frames(context, position[:1], key, value)

    def forward(
        self,
        multi_scale: Sequence[torch.Tensor],
        mask_features: torch.Tensor,
        frames: torch.Tensor,
        num_frames: int = 1,
        auxiliary: bool = False,
        targets: Sequence[int] | None = None,
    ) -> ClipPredictions:
        """Predictions of B clips.

        Args:
            multi_scale: maps [B*T, C, h, w] at strides 32, 16 and 8, clip-major.
            mask_features: [B*T, C, H/4, W/4].
            frames: what `look` gave for each frame, [B*T, Q, C].
            num_frames: T.
            auxiliary: give the predictions before the first and after every layer, else that after
                the last one alone.
            targets: frames of each clip whose masks the last prediction holds; None = all.
        """
        memories = self._memories(multi_scale)
        features = mask_features.unflatten(0, (-1, num_frames))  # [B, T, C, H/4, W/4]
        sources = [features] * NUM_LEVELS
        if not auxiliary:
            sizes = [memory.size for memory in memories]
            sources = attention_features(features, sizes, self.fast_attention_masks)
        query, position = self._learned(len(features))
        video = self.aggregation.start_video(query, position)
        predictions = ClipPredictions([], [])
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for index, (cross_attention, self_attention, feed_forward) in enumerate(layers):
            key, value, size = memories[index % NUM_LEVELS]
            normed = self.decoder_norm1(video)
            masks = mask_logits(self.mask_embed(normed), sources[index % NUM_LEVELS])
            if auxiliary:
                predictions.video.append(MaskPrediction(self.class_embed(normed), masks))
                predictions.frame.append(self._frame_prediction(frames, features))
            # [B, Q, T, h, w] -> [B*T, Q, h*w]
            forbidden = attention_mask(masks, size).transpose(1, 2).flatten(3).flatten(0, 1)
            frames = cross_attention(frames, position[:1], key, value, free_empty_rows(forbidden))
            frames = feed_forward(self_attention(frames, position[:1]))
            video = self.aggregation.combine(video, frames.unflatten(0, (-1, num_frames)))
        if targets is not None and list(targets) != list(range(num_frames)):
            features = features[:, list(targets)]
            frames = frames.unflatten(0, (-1, num_frames))[:, list(targets)].flatten(0, 1)
        normed = self.decoder_norm1(video)
        masks = mask_logits(self.mask_embed(normed), features)
        predictions.video.append(MaskPrediction(self.class_embed(normed), masks))
        predictions.frame.append(self._frame_prediction(frames, features))
        return predictions

    def _frame_prediction(self, frames: torch.Tensor, features: torch.Tensor) -> MaskPrediction:
        """Of frame queries [B*T, Q, C] and mask features [B, T, C, h, w]."""
        normed = self.decoder_norm2(frames)
        own = features.flatten(0, 1)[:, None]
        return MaskPrediction(
            self.class_embed_aux(normed), mask_logits(self.mask_embed_aux(normed), own)
        )

    def _learned(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Query features and positions, [B, Q, C] each."""
        query, position = self.query_feat.weight, self.query_embed.weight
        return query.expand(batch, -1, -1), position.expand(batch, -1, -1)

    def _memories(self, multi_scale: Sequence[torch.Tensor]) -> list[LevelMemory]:
        """Tokens of every level and frame [B*T, h*w, C], with the level's embedding."""
        memories = []
        for feature, embed in zip(multi_scale, self.level_embed.weight, strict=True):
            height, width = feature.shape[-2:]
            value = map_to_tokens(feature) + embed
            code = sine_position(height, width, value.shape[2], value.device)
            memories.append(LevelMemory(value + code.to(value.dtype), value, (height, width)))
        return memories
