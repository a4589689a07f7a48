"""Cross-frame feature mining of CFFM: windows of the target attend coarse-to-fine to four frames.

Sun et al., Coarse-to-Fine Feature Mining for Video Semantic Segmentation, CVPR 2022, sections 3.2
and 3.3. Parameter names are those of the published checkpoints. All maps here are channel-last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from vss2.layers.focal_windows import (
    PooledGrid,
    merge_windows,
    pad_to_windows,
    pool_windows,
    relative_index,
    split_windows,
    surround_positions,
    window_keys,
)
from vss2.modeling.losses import resize_scores

WINDOW = 7
EXPAND = 3
NORM_EPS = 1e-5
# The target's own pooled grid, and those of the references, oldest first: the older the frame, the
# coarser the grid and the wider the area that a window sees of it.
TARGET_GRID = PooledGrid(level=1, kernel=5)
REFERENCE_GRIDS = (PooledGrid(1, 7), PooledGrid(2, 5), PooledGrid(3, 3))
TABLE_STD = 0.02

Pooled = tuple[torch.Tensor, ...]


def bias_table(heads: int, kernel: int) -> nn.Parameter:
    """Bias of each head by relative position of a query and a key of a pooled patch."""
    table = torch.empty(heads, (WINDOW + kernel - 1) ** 2)
    return nn.Parameter(nn.init.trunc_normal_(table, std=TABLE_STD))


class FocalAttention(nn.Module):
    """Attention of each 7x7 window to itself, its surround and the pooled grids (section 3.3).

    289 keys per window: 49 own, 132 around it (cyclic over the map), 25 of the target's pooled
    grid, and 49, 25 and 9 of the references' from the oldest on. Padded tokens of the target map
    are ordinary keys, and cells outside a pooled grid are keys 0 with -100 on their logit: both as
    published.
    """

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.grids = (TARGET_GRID, *REFERENCE_GRIDS)
        around = len(surround_positions(WINDOW, EXPAND))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * WINDOW - 1) ** 2, num_heads)
        )
        neighbors = torch.empty(1, num_heads, WINDOW**2, around)
        self.relative_position_bias_table_to_neighbors = nn.Parameter(
            nn.init.trunc_normal_(neighbors, std=TABLE_STD)
        )
        self.relative_position_bias_table_to_windows = nn.ParameterList(
            [bias_table(num_heads, TARGET_GRID.kernel)]
        )
        self.relative_position_bias_table_to_windows_clips = nn.ParameterList(
            [bias_table(num_heads, grid.kernel) for grid in REFERENCE_GRIDS]
        )
        for kernel in {WINDOW, *(grid.kernel for grid in self.grids)}:
            self.register_buffer(f"_index{kernel}", relative_index(WINDOW, kernel), False)

    def _bias(self) -> torch.Tensor:
        """[heads, 49, 289]."""
        own = self.relative_position_bias_table.T[:, self.get_buffer(f"_index{WINDOW}")]
        tables = (
            *self.relative_position_bias_table_to_windows,
            *self.relative_position_bias_table_to_windows_clips,
        )
        pooled = [
            table[:, self.get_buffer(f"_index{grid.kernel}")]
            for table, grid in zip(tables, self.grids, strict=True)
        ]
        return torch.cat((own, self.relative_position_bias_table_to_neighbors[0], *pooled), dim=2)

    def forward(self, target: torch.Tensor, pooled: Sequence[torch.Tensor]) -> torch.Tensor:
        """Attend.

        Args:
            target: normed and padded target map [B, H, W, C], H and W multiples of 7.
            pooled: the target's pooled grid and the three references', [B, l*nH, l*nW, C] each.

        Returns:
            Windows [B, nH*nW, 49, C].
        """
        batch, height, width, channels = target.shape
        heads = self.num_heads
        keys = window_keys(
            (height // WINDOW, width // WINDOW), WINDOW, EXPAND, self.grids, target.device
        )
        windows, num_keys = keys.positions.shape

        qkv = self.qkv(target)
        query = split_windows(qkv[..., :channels], WINDOW).unflatten(3, (heads, -1))
        # [B, nW, 49, heads, d] -> [B, heads*nW, 49, d]
        query = query.permute(0, 3, 1, 2, 4).flatten(1, 2) * query.shape[-1] ** -0.5

        # Queries of the pooled grids serve nobody.
        cells = F.linear(
            torch.cat([grid.flatten(1, 2) for grid in pooled], dim=1),
            self.qkv.weight[channels:],
            self.qkv.bias[channels:],
        )
        tokens = torch.cat(
            (qkv[..., channels:].flatten(1, 2), cells, cells.new_zeros(batch, 1, 2 * channels)),
            dim=1,
        )
        # [B, M, 2C] -> [2, B, heads, M, d]; gathered to [2, B, heads*nW, 289, d]
        tokens = tokens.unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        key, value = (
            tokens.index_select(3, keys.positions.flatten())
            .unflatten(3, (windows, -1))
            .flatten(2, 3)
        )

        bias = self._bias()[:, None] + keys.mask[None, :, None, :]  # [heads, nW, 49, 289]
        bias = bias.to(query.dtype).view(1, heads * windows, WINDOW**2, num_keys)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias.expand(batch, -1, -1, -1), scale=1.0
        )
        # [B, heads*nW, 49, d] -> [B, nW, 49, heads*d]
        out = out.unflatten(1, (heads, windows)).permute(0, 2, 3, 1, 4).flatten(3)
        return self.proj(out)


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def pooling_layer(side: int) -> nn.Linear:
    """The weights of `pool_windows`, starting as a mean."""
    layer = nn.Linear(side**2, 1)
    nn.init.constant_(layer.weight, 1.0 / side**2)
    nn.init.zeros_(layer.bias)
    return layer


class FocalBlock(nn.Module):
    """Pooling, focal attention and feed-forward: refines the target map (section 3.3)."""

    def __init__(self, channels: int, num_heads: int, mlp_ratio: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.pool_layers = nn.ModuleList([pooling_layer(WINDOW // TARGET_GRID.level)])
        self.pool_layers_clips = nn.ModuleList(
            [pooling_layer(WINDOW // grid.level) for grid in REFERENCE_GRIDS]
        )
        self.attn = FocalAttention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp = Mlp(channels, mlp_ratio * channels)

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        # Padding follows the norm, so that padded tokens are 0.
        return pad_to_windows(self.norm1(x), WINDOW)

    def _pool(self, normed: torch.Tensor, grid: PooledGrid, layer: nn.Linear) -> torch.Tensor:
        side = WINDOW // grid.level
        # 7 is no multiple of 2 and 3: those grids pool a map that was resized to fit.
        size = [n // WINDOW * grid.level * side for n in normed.shape[1:3]]
        if list(normed.shape[1:3]) != size:
            normed = resize_scores(normed.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
        return pool_windows(normed, layer.weight, layer.bias, side)

    def pool_references(
        self, maps: torch.Tensor, slots: Sequence[Sequence[int]] | None = None
    ) -> Pooled:
        """What the attention sees of frames that serve as references.

        Args:
            maps: [N, h, w, C].
            slots: for each of the three reference places, oldest first, the frames (positions in
                dimension 0) that are pooled for it; default every frame for every place.

        Returns:
            For each place [n, l*nH, l*nW, C], n frames.
        """
        normed = self._normed(maps)
        places = zip(REFERENCE_GRIDS, self.pool_layers_clips, strict=True)
        return tuple(
            self._pool(normed if slots is None else normed[list(slots[k])], grid, layer)
            for k, (grid, layer) in enumerate(places)
        )

    def forward(self, target: torch.Tensor, references: Pooled) -> torch.Tensor:
        """target [B, h, w, C] and its pooled references to [B, h, w, C]."""
        normed = self._normed(target)
        own = self._pool(normed, TARGET_GRID, self.pool_layers[0])
        windows = self.attn(normed, (own, *references))
        target = target + merge_windows(windows, target.shape[1:3], WINDOW)
        return target + self.mlp(self.norm2(target))


class FocalDecoder(nn.Module):
    """`depth` focal blocks. Only the target changes; each block pools the references anew.

    Args:
        channels: C, a multiple of `num_heads`.
        depth: blocks: 1 in CFFM-B0, 2 in B1 and B2, 4 in B5.
        num_heads, mlp_ratio: of every block.
    """

    def __init__(self, channels: int, depth: int, num_heads: int = 8, mlp_ratio: int = 4):
        super().__init__()
        self.blocks = nn.ModuleList(
            [FocalBlock(channels, num_heads, mlp_ratio) for _ in range(depth)]
        )

    def pool_references(
        self, maps: torch.Tensor, slots: Sequence[Sequence[int]] | None = None
    ) -> tuple[Pooled, ...]:
        """`FocalBlock.pool_references` of every block; maps [N, C, h, w]."""
        maps = maps.permute(0, 2, 3, 1)
        return tuple(block.pool_references(maps, slots) for block in self.blocks)

    def forward(self, target: torch.Tensor, references: Sequence[Pooled]) -> torch.Tensor:
        """Refine the target.

        Args:
            target: [B, C, h, w].
            references: for every block the pooled maps of the three references, oldest first.

        Returns:
            [B, C, h, w].
        """
        target = target.permute(0, 2, 3, 1)
        for block, pooled in zip(self.blocks, references, strict=True):
            target = block(target, pooled)
        return target.permute(0, 3, 1, 2)
