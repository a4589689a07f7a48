"""SegFormer the published way, on the weights of a vss2 model: the yardstick of its speed.

Attention scores as a whole matrix, token maps in NCHW memory, every stage projected and upsampled
to stride 4 before one wide 1x1 convolution, two resizes of all classes at full size, softmax,
argmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from vss2.modeling.backbone.mit import HEADS, SR_RATIOS
from vss2.modeling.segformer import SegFormer


def to_map(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[N, h*w, C] to [N, C, h, w], as a copy in NCHW memory."""
    count, _, channels = tokens.shape
    return tokens.permute(0, 2, 1).reshape(count, channels, height, width).contiguous()


def to_tokens(feature: torch.Tensor) -> torch.Tensor:
    return feature.flatten(2).transpose(1, 2)


def attention(
    part: Any, x: torch.Tensor, height: int, width: int, heads: int, ratio: int
) -> torch.Tensor:
    count, length, channels = x.shape
    query = part.q(x).reshape(count, length, heads, channels // heads).permute(0, 2, 1, 3)
    source = x
    if ratio > 1:
        source = part.norm(to_tokens(part.sr(to_map(x, height, width))))
    both = part.kv(source).reshape(count, -1, 2, heads, channels // heads).permute(2, 0, 3, 1, 4)
    scores = (query @ both[0].transpose(-2, -1)) * (channels // heads) ** -0.5
    out = scores.softmax(dim=-1) @ both[1]
    return part.proj(out.transpose(1, 2).reshape(count, length, channels))


def backbone(part: Any, x: torch.Tensor) -> list[torch.Tensor]:
    maps = []
    for index in range(4):
        stage = index + 1
        embed = getattr(part, f"patch_embed{stage}")
        x = embed.proj(x)
        height, width = x.shape[-2:]
        tokens = embed.norm(to_tokens(x))
        for block in getattr(part, f"block{stage}"):
            tokens = tokens + attention(
                block.attn, block.norm1(tokens), height, width, HEADS[index], SR_RATIOS[index]
            )
            hidden = to_map(block.mlp.fc1(block.norm2(tokens)), height, width)
            hidden = F.gelu(to_tokens(block.mlp.dwconv.dwconv(hidden)))
            tokens = tokens + block.mlp.fc2(hidden)
        x = to_map(getattr(part, f"norm{stage}")(tokens), height, width)
        maps.append(x)
    return maps


def resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


def embedding(part: Any, maps: list[torch.Tensor]) -> torch.Tensor:
    """Stages of the backbone to [N, E, H / 4, W / 4]."""
    size = maps[0].shape[-2:]
    projected = []
    for stage in (4, 3, 2, 1):
        feature = maps[stage - 1]
        tokens = getattr(part, f"linear_c{stage}").proj(to_tokens(feature))
        grid = to_map(tokens, *feature.shape[-2:])
        projected.append(grid if stage == 1 else resize(grid, size))
    fuse = part.linear_fuse
    return fuse.bn(fuse.conv(torch.cat(projected, dim=1))).relu()


def published_scores(model: SegFormer, frame: torch.Tensor) -> torch.Tensor:
    """uint8 [3, H, W] to scores [1, K, H / 4, W / 4]."""
    images = model.normalize(frame[None])
    head = model.decode_head
    return head.linear_pred(embedding(head, backbone(model.backbone, images)))


def labels_of(
    scores: torch.Tensor, input_size: Sequence[int], output_size: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels int64 [H', W'] and softmax scores [K, H', W'] from the scores [1, K, h, w] of a frame,
    by two resizes of all classes.
    """
    probabilities = resize(resize(scores, input_size), output_size).softmax(dim=1)[0]
    return probabilities.argmax(0), probabilities


@torch.no_grad()
def published_labels(
    model: SegFormer, frame: torch.Tensor, output_size: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels int64 [H', W'] and softmax scores [K, H', W'] of one frame."""
    return labels_of(published_scores(model, frame), frame.shape[-2:], output_size)
