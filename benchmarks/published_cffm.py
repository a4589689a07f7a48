"""CFFM the published way, on the weights of a vss2 model: the yardstick of its speed.

All four frames of the window pass the network for every answer; every stage is projected and
upsampled to stride 4 before one wide convolution; per-frame scores that nothing reads are
computed; the keys of every window are copied together (four cyclic shifts, unfolded patches);
attention scores are whole matrices; two resizes of all classes at full size, softmax, argmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from published_segformer import backbone, embedding, labels_of, resize

from vss2.projects.cffm.focal import EXPAND, REFERENCE_GRIDS, TARGET_GRID, WINDOW
from vss2.projects.cffm.model import CFFM

OUTSIDE = -100.0


def windows_of(x: torch.Tensor) -> torch.Tensor:
    """[B, H, W, C] to copied windows [B * nW, 7, 7, C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW, WINDOW, channels)


def pooled(x: torch.Tensor, level: int, layer: torch.nn.Linear) -> torch.Tensor:
    """[B, H, W, C] to [B, level * nH, level * nW, C] by one linear layer on squares."""
    batch, height, width, channels = x.shape
    side = WINDOW // level
    rows, columns = height // WINDOW * level, width // WINDOW * level
    if (height, width) != (rows * side, columns * side):
        x = resize(x.permute(0, 3, 1, 2), (rows * side, columns * side)).permute(0, 2, 3, 1)
    x = x.reshape(batch, rows, side, columns, side, channels).permute(0, 1, 3, 5, 2, 4)
    return layer(x.reshape(batch, rows, columns, channels, side * side)).squeeze(-1)


def by_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[N, ..., C] to [N, heads, tokens, d]."""
    return x.reshape(x.shape[0], -1, heads, x.shape[-1] // heads).transpose(1, 2)


def surround(x: torch.Tensor) -> torch.Tensor:
    """The 132 tokens around every window, [B * nW, 132, C]: four shifted copies of the map."""
    parts = []
    place = torch.arange(WINDOW)
    for down, right in ((EXPAND, EXPAND), (EXPAND, -EXPAND), (-EXPAND, EXPAND), (-EXPAND, -EXPAND)):
        shifted = windows_of(torch.roll(x, (-down, -right), (1, 2)))
        rows, columns = (place + down)[:, None], (place + right)[None, :]
        outside = (rows < 0) | (rows >= WINDOW) | (columns < 0) | (columns >= WINDOW)
        parts.append(shifted[:, outside])
    return torch.cat(parts, dim=1)


def patches(x: torch.Tensor, level: int, kernel: int, heads: int) -> torch.Tensor:
    """Patch of a pooled grid [B, gh, gw, C] for every window: [B * nW, heads, kernel^2, d]."""
    batch, _, _, channels = x.shape
    columns = F.unfold(x.permute(0, 3, 1, 2), kernel, padding=kernel // 2, stride=level)
    columns = columns.reshape(batch, heads, channels // heads, kernel * kernel, -1)
    return columns.permute(0, 4, 1, 3, 2).reshape(-1, heads, kernel * kernel, channels // heads)


def attention(part: Any, target: torch.Tensor, grids: Sequence[torch.Tensor]) -> torch.Tensor:
    """Windows [B * nW, 49, C] of the target from its padded map and the four pooled grids."""
    heads, channels = part.num_heads, target.shape[-1]
    query, key, value = part.qkv(target).split(channels, dim=-1)
    query = by_head(windows_of(query), heads) * (channels // heads) ** -0.5
    keys = [by_head(windows_of(key), heads), by_head(surround(key), heads)]
    values = [by_head(windows_of(value), heads), by_head(surround(value), heads)]
    masks = []
    geometry = (TARGET_GRID, *REFERENCE_GRIDS)
    for grid, (level, kernel) in zip(grids, geometry, strict=True):
        _, key, value = part.qkv(grid).split(channels, dim=-1)
        keys.append(patches(key, level, kernel, heads))
        values.append(patches(value, level, kernel, heads))
        inside = patches(torch.ones_like(grid[..., :1]), level, kernel, 1)
        masks.append((inside.transpose(2, 3) == 0) * OUTSIDE)

    scores = query @ torch.cat(keys, dim=2).transpose(2, 3)
    own = part.relative_position_bias_table.T[:, part.get_buffer(f"_index{WINDOW}")]
    tables = (
        *part.relative_position_bias_table_to_windows,
        *part.relative_position_bias_table_to_windows_clips,
    )
    biases = [own, part.relative_position_bias_table_to_neighbors[0]]
    biases += [
        table[:, part.get_buffer(f"_index{grid.kernel}")]
        for table, grid in zip(tables, geometry, strict=True)
    ]
    start = 0
    for index, bias in enumerate(biases):
        area = slice(start, start + bias.shape[-1])
        scores[..., area] = scores[..., area] + bias
        if index > 1:
            scores[..., area] = scores[..., area] + masks[index - 2]
        start += bias.shape[-1]
    out = scores.softmax(dim=-1) @ torch.cat(values, dim=2)
    return part.proj(out.transpose(1, 2).reshape(out.shape[0], -1, channels))


def focal_block(block: Any, clip: torch.Tensor) -> torch.Tensor:
    """[B, 4, h, w, C] to the same shape; the references leave as they came."""
    batch, _, height, width, channels = clip.shape
    bottom, right = -height % WINDOW, -width % WINDOW
    normed = F.pad(block.norm1(clip), (0, 0, 0, right, 0, bottom))
    grids = [pooled(normed[:, -1], TARGET_GRID.level, block.pool_layers[0])]
    places = zip(REFERENCE_GRIDS, block.pool_layers_clips, strict=True)
    grids += [pooled(normed[:, k], grid.level, layer) for k, (grid, layer) in enumerate(places)]
    windows = attention(block.attn, normed[:, -1], grids)
    rows, columns = (height + bottom) // WINDOW, (width + right) // WINDOW
    merged = windows.reshape(batch, rows, columns, WINDOW, WINDOW, channels)
    merged = merged.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows * WINDOW, -1, channels)
    target = clip[:, -1] + merged[:, :height, :width]
    target = target + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(target))))
    return torch.cat((clip[:, :-1], target[:, None]), dim=1)


def published_scores(model: CFFM, clip: torch.Tensor) -> torch.Tensor:
    """uint8 [4, 3, H, W] to scores [1, K, H / 4, W / 4] of the last frame."""
    head = model.decode_head
    fused = embedding(head, backbone(model.backbone, model.normalize(clip)))
    head.linear_pred(fused)
    size = fused.shape[-2:]
    half = resize(fused, (size[0] // 2, size[1] // 2))
    mined = half.permute(0, 2, 3, 1)[None]
    for block in head.decoder_focal.blocks:
        mined = focal_block(block, mined)
    mined = mined[:, -1].permute(0, 3, 1, 2)
    return resize(head.linear_pred2(torch.cat((half[-1:], mined), dim=1)), size)


@torch.no_grad()
def published_labels(
    model: CFFM, clip: torch.Tensor, output_size: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels int64 [H', W'] and softmax scores [K, H', W'] of the last frame of a clip."""
    return labels_of(published_scores(model, clip), clip.shape[-2:], output_size)
