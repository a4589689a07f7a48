"""THE-Mask's second stage the published way, on the weights of a vss2 model: its yardstick.

Attention and deformable attention in plain PyTorch with whole matrices and all levels sampled
before the sum, position codes made anew in every pass, all ten predictions of both branches with
masks at stride 4, attention masks resized from those and repeated for every head, two resizes of
all classes at full size, softmax, argmax. Everything of a clip is computed anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from published_segformer import backbone, resize

HEADS = 8
POINTS = 4


def sine_code(height: int, width: int, channels: int = 256) -> torch.Tensor:
    """Rows, then columns: [channels, height, width]."""
    half = channels // 2
    k = torch.arange(half, dtype=torch.float32)
    frequency = 10000 ** (2 * torch.div(k, 2, rounding_mode="floor") / half)
    codes = []
    for size in (height, width):
        place = torch.arange(1, size + 1, dtype=torch.float32) / (size + 1e-6) * 2 * math.pi
        angle = place[:, None] / frequency
        codes.append(torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), 2).flatten(1))
    rows = codes[0].t()[:, :, None].expand(half, height, width)
    columns = codes[1].t()[:, None, :].expand(half, height, width)
    return torch.cat((rows, columns))


def time_code(frames: int, channels: int = 256) -> torch.Tensor:
    """[frames, channels]."""
    k = torch.arange(channels, dtype=torch.float32)
    frequency = 10000 ** (2 * torch.div(k, 2, rounding_mode="floor") / channels)
    place = torch.arange(1, frames + 1, dtype=torch.float32) / (frames + 1e-6) * 2 * math.pi
    angle = place[:, None] / frequency
    return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), 2).flatten(1)


def deformable_attention(
    part: Any, query: torch.Tensor, tokens: torch.Tensor, sizes: Sequence[Sequence[int]]
) -> torch.Tensor:
    count, length, channels = query.shape
    levels, depth = len(sizes), channels // HEADS
    value = part.value_proj(tokens).view(count, length, HEADS, depth)
    offsets = part.sampling_offsets(query).view(count, length, HEADS, levels, POINTS, 2)
    weights = part.attention_weights(query).view(count, length, HEADS, levels * POINTS)
    weights = weights.softmax(-1).view(count, length, HEADS, levels, POINTS)
    centres = []
    for height, width in sizes:
        y, x = torch.meshgrid(
            torch.linspace(0.5, height - 0.5, height) / height,
            torch.linspace(0.5, width - 0.5, width) / width,
            indexing="ij",
        )
        centres.append(torch.stack((x.reshape(-1), y.reshape(-1)), -1))
    reference = torch.cat(centres)[None, :, None, None, None, :]
    normaliser = torch.tensor([[width, height] for height, width in sizes], dtype=query.dtype)
    grids = 2 * (reference + offsets / normaliser[None, None, None, :, None, :]) - 1
    sampled = []
    for level, ((height, width), part_value) in enumerate(
        zip(sizes, value.split([h * w for h, w in sizes], dim=1), strict=True)
    ):
        image = part_value.flatten(2).transpose(1, 2).reshape(count * HEADS, depth, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(
            F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        )
    weights = weights.transpose(1, 2).reshape(count * HEADS, 1, length, levels * POINTS)
    out = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)
    return part.output_proj(out.view(count, channels, length).transpose(1, 2).contiguous())


def pixel_decoder(part: Any, maps: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Mask features and the maps at strides 32, 16 and 8."""
    projected = [layer(maps[3 - i]) for i, layer in enumerate(part.input_proj)]
    sizes = [tuple(x.shape[-2:]) for x in projected]
    tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in projected], dim=1)
    level_embed = part.transformer.level_embed
    position = torch.cat(
        [sine_code(*size).flatten(1).t() + level_embed[i] for i, size in enumerate(sizes)]
    )
    for layer in part.transformer.encoder.layers:
        attended = deformable_attention(layer.self_attn, tokens + position, tokens, sizes)
        tokens = layer.norm1(tokens + attended)
        tokens = layer.norm2(tokens + layer.linear2(layer.linear1(tokens).relu()))
    split = tokens.split([h * w for h, w in sizes], dim=1)
    out = [x.transpose(1, 2).reshape(-1, 256, *size) for x, size in zip(split, sizes, strict=True)]
    lateral = part.adapter_1.norm(F.conv2d(maps[0], part.adapter_1.weight))
    fine = lateral + resize(out[2], maps[0].shape[-2:])
    fine = part.layer_1.norm(F.conv2d(fine, part.layer_1.weight, padding=1)).relu()
    return part.mask_features(fine), out


def attention(
    part: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sequence first; the weights are averaged over heads and thrown away, as published."""
    return F.multi_head_attention_forward(
        query,
        key,
        value,
        query.shape[2],
        HEADS,
        part.in_proj_weight,
        part.in_proj_bias,
        None,
        None,
        False,
        0.0,
        part.out_proj.weight,
        part.out_proj.bias,
        training=False,
        need_weights=True,
        attn_mask=mask,
    )[0]


def mlp(part: Any, x: torch.Tensor) -> torch.Tensor:
    for layer in part.layers[:-1]:
        x = layer(x).relu()
    return part.layers[-1](x)


def predict(
    part: Any,
    video: torch.Tensor,
    frames: torch.Tensor,
    mask_features: torch.Tensor,
    size: Sequence[int],
) -> tuple[Any, Any, torch.Tensor]:
    """Both branches' (class logits, masks), and the attention mask of the next layer."""
    queries = part.decoder_norm1(video).transpose(0, 1)  # [1, Q, C]
    classes = part.class_embed(queries)
    masks = torch.einsum("bqc,tchw->bqthw", mlp(part.mask_embed, queries), mask_features)
    small = resize(masks[0].transpose(0, 1), size)  # [T, Q, h, w]
    forbidden = (small.sigmoid().flatten(2)[:, None].repeat(1, HEADS, 1, 1) < 0.5).flatten(0, 1)
    forbidden[torch.where(forbidden.sum(-1) == forbidden.shape[-1])] = False
    own = part.decoder_norm2(frames).transpose(0, 1)  # [T, Q, C]
    frame_classes = part.class_embed_aux(own)
    frame_masks = torch.einsum("tqc,tchw->tqhw", mlp(part.mask_embed_aux, own), mask_features)
    return (classes, masks), (frame_classes, frame_masks), forbidden


def decoder(
    part: Any, levels: list[torch.Tensor], mask_features: torch.Tensor
) -> tuple[list[Any], list[Any]]:
    """All ten predictions of the video and of the frame branch for one clip of T frames."""
    count = len(mask_features)
    once: Any = part.deformabel_transformer_cross_attention_layers
    memory, position, sizes = [], [], []
    for index, level in enumerate(levels):
        sizes.append(tuple(level.shape[-2:]))
        memory.append(level.flatten(2).permute(2, 0, 1) + part.level_embed.weight[index])
        code = sine_code(*sizes[-1])[None] + time_code(count)[:, :, None, None]
        position.append(code.flatten(2).permute(2, 0, 1))
    everything, where = torch.cat(memory), torch.cat(position)

    place = part.query_embed.weight[:, None]  # [Q, 1, C]
    start = part.query_feat.weight[:, None]
    asking = start + place
    video = once.norm2(start + attention(once.self_attn, asking, asking, start))
    box = once.norm2_box(start + attention(once.self_attn_box, asking, asking, start))
    found = []
    for t in range(count):
        key = everything[:, t : t + 1]
        seen = attention(once.cross_attn, box + place, key + where[:, t : t + 1], key)
        f = once.norm1_box(box + seen)
        found.append(once.norm3_box(f + once.linear2_box(once.linear1_box(f).relu())))
    frames = torch.cat(found, dim=1)  # [Q, T, C]

    outputs = predict(part, video, frames, mask_features, sizes[0])
    of_video, of_frames, forbidden = [outputs[0]], [outputs[1]], outputs[2]
    for i in range(len(part.transformer_ffn_layers)):
        level = i % 3
        cross = part.transformer_cross_attention_layers[i]
        own = part.transformer_self_attention_layers[i]
        feed = part.transformer_ffn_layers[i]
        seen = attention(
            cross.multihead_attn,
            frames + place,
            memory[level] + position[level],
            memory[level],
            forbidden,
        )
        frames = cross.norm(frames + seen)
        asking = frames + place
        frames = own.norm(frames + attention(own.self_attn, asking, asking, frames))
        frames = feed.norm(frames + feed.linear2(feed.linear1(frames).relu()))
        weights = once.time_attention_weights(frames).softmax(dim=1)
        video = once.norm1(video + (weights * once.time_attention(frames)).sum(1, keepdim=True))
        video = once.norm3(video + once.linear2(once.linear1(video).relu()))
        outputs = predict(part, video, frames, mask_features, sizes[(i + 1) % 3])
        of_video.append(outputs[0])
        of_frames.append(outputs[1])
        forbidden = outputs[2]
    return of_video, of_frames


def published_scores(model: Any, frames: torch.Tensor) -> torch.Tensor:
    """uint8 [T, 3, H, W], one clip, to scores [T, K, H / 4, W / 4]."""
    maps = backbone(model.backbone, model.normalize(frames))
    head = model.decode_head
    mask_features, levels = pixel_decoder(head.pixel_decoder, maps)
    of_video, of_frames = decoder(head.predictor, levels, mask_features)
    classes, masks = of_video[-1]
    classes = classes.softmax(-1)[..., :-1]
    by_video = torch.einsum("bqk,bqthw->btkhw", classes, masks.sigmoid())[0]
    classes, masks = of_frames[-1]
    by_frames = torch.einsum("tqk,tqhw->tkhw", classes.softmax(-1)[..., :-1], masks.sigmoid())
    return (by_video + by_frames) / 2


@torch.no_grad()
def published_labels(
    model: Any, frames: torch.Tensor, output_size: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels int64 [T, H', W'] and the scores [T, K, H', W'] before the softmax, of one clip."""
    scores = resize(published_scores(model, frames), frames.shape[-2:])
    scores = resize(scores, output_size)
    return scores.softmax(dim=1).argmax(1), scores
