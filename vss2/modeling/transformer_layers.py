"""Blocks of transformer decoders with masked attention: attention, feed-forward, small MLP.

Mask2Former (Cheng et al., CVPR 2022), section 3.2.2. All are post-norm. Parameter names are those
of the published checkpoints, which are those of `torch.nn.MultiheadAttention`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vss2.errors import InputError


class Attention(nn.Module):
    """Multi-head attention with a mask that all heads share.

    Args:
        channels: C of queries, keys and values.
        num_heads: has to divide C.
        dropout: of the attention weights in training mode.
    """

    def __init__(self, channels: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        if channels % num_heads:
            raise InputError(f"{channels} channels cannot be split over {num_heads} heads")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        forbidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: [N, Q, C].
            key, value: [N, M, C].
            forbidden: bool [N, Q, M], True where a query must not look; no row forbids all.

        Returns:
            [N, Q, C].
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(source, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for source, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mask = None if forbidden is None else ~forbidden[:, None]
        dropout = self.dropout.p if self.dropout.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class CrossAttentionLayer(nn.Module):
    """Queries look at a memory: norm(q + attention)."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.multihead_attn = Attention(channels, num_heads)
        self.norm = nn.LayerNorm(channels)

    def forward(
        self,
        query: torch.Tensor,
        query_position: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        forbidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """query [N, Q, C] and its position code; see `Attention` for the rest."""
        attended = self.multihead_attn(query + query_position, key, value, forbidden)
        return self.norm(query + attended)


class SelfAttentionLayer(nn.Module):
    """Queries look at each other: norm(q + attention)."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.self_attn = Attention(channels, num_heads)
        self.norm = nn.LayerNorm(channels)

    def forward(self, query: torch.Tensor, query_position: torch.Tensor) -> torch.Tensor:
        """query [N, Q, C] and its position code; the same shape out."""
        placed = query + query_position
        return self.norm(query + self.self_attn(placed, placed, query))


class FeedForwardLayer(nn.Module):
    """norm(q + linear2(relu(linear1(q))))."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)
        self.norm = nn.LayerNorm(channels)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, query: torch.Tensor) -> torch.Tensor:
        """[N, Q, C] to the same shape."""
        return self.norm(query + self.linear2(self.linear1(query).relu()))


class MLP(nn.Module):
    """Linear layers `layers.0`, ... of one width with ReLU between them."""

    def __init__(self, channels: int, num_layers: int = 3):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(channels, channels) for _ in range(num_layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., C] to the same shape."""
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x).relu()
        return last(x)
