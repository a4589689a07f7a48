"""MRCFA the published way, on the weights of a vss2 model: the yardstick of its speed.

All four frames of the window pass the network for every answer; every stage is projected and
upsampled to stride 4 before one wide convolution; scores of single frames and of single references
are computed, though nothing reads them; the affinities to each token are a batch of one-channel
images; two resizes of all classes at full size, softmax, argmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from published_segformer import backbone, embedding, labels_of, resize, to_tokens

from vss2.projects.mrcfa import MRCFA


def affinity(part: Any, scale: int, target: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """[1, C, h, w] and reduced references [R, C, h_5, w_5] to [R, P, N]."""
    query = part.get_submodule(f"q{scale - 1}")(to_tokens(target))
    key = part.get_submodule(f"k{scale - 1}")(to_tokens(keys))
    return query @ key.transpose(1, 2)


def blocks(part: Any, images: torch.Tensor) -> torch.Tensor:
    """Convolution, norm, ReLU, once or twice, on [R * S, c, h, w]."""
    layers = list(part)
    for conv, norm in zip(layers[::3], layers[1::3], strict=True):
        small = conv.conv2
        images = F.conv2d(images, small.weight, small.bias, padding=small.padding)
        images = F.group_norm(images, 1, norm.weight, norm.bias, norm.eps).relu()
    return images


def enlarged(images: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(images, size=like.shape[-2:], mode="bilinear", align_corners=True)


def attend(
    part: Any, target: dict[int, torch.Tensor], keys: dict[int, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [R, P, S] at stride 8 and the selection, bool [R, N]."""
    affinities = {scale: affinity(part, scale, target[scale], keys[scale]) for scale in (4, 3, 2)}
    count, _, tokens = affinities[4].shape
    score = affinities[4].topk(part.score_top_k, dim=1).values.sum(1)
    kept = score.topk(part.num_selected(tokens), dim=1).indices
    selected = torch.zeros_like(score, dtype=torch.bool).scatter_(1, kept, True)
    images = {}
    for scale, values in affinities.items():
        chosen = values.transpose(1, 2)[selected]  # [R * S, P]
        images[scale] = chosen.reshape(-1, 1, *target[scale].shape[-2:])
    net = part.hpn
    refined = {
        scale: blocks(net.get_submodule(f"encoder_layer{scale}"), images[scale]) for scale in images
    }
    merged = blocks(net.encoder_layer4to3, enlarged(refined[4], refined[3]) + refined[3])
    merged = blocks(net.encoder_layer3to2, enlarged(merged, refined[2]) + refined[2])
    return merged.reshape(count, kept.shape[1], -1).transpose(1, 2).softmax(-1), selected


def branch(part: Any, x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return resize(part.smalldecoder(x), size)


def published_scores(model: MRCFA, clip: torch.Tensor) -> torch.Tensor:
    """uint8 [R + 1, 3, H, W] to scores [1, K, H / 4, W / 4] of the last frame."""
    head = model.decode_head
    maps = backbone(model.backbone, model.normalize(clip))
    fused = embedding(head, maps)
    head.linear_pred(fused)
    size = fused.shape[-2:]
    stages = dict(zip((1, 2, 3, 4), maps, strict=True))
    keys = {2: head.sr2(stages[2][:-1]), 3: head.sr3(stages[3][:-1]), 4: stages[4][:-1]}
    target = {scale: stages[scale][-1:] for scale in keys}
    attention, selected = attend(head.hypercorre_module, target, keys)

    half = resize(fused, (size[0] // 2, size[1] // 2))
    values = to_tokens(head.sr1_feat(half))[:-1]
    values = values[selected].reshape(len(values), -1, values.shape[-1])
    said = (attention @ values).transpose(1, 2).unflatten(2, half.shape[-2:])
    for index in range(head.num_references):
        branch(head.get_submodule(f"deco{index + 1}"), said[index : index + 1], size)
    last = head.get_submodule(f"deco{head.num_references + 1}")
    return branch(last, said.mean(0, keepdim=True) + half[-1:], size)


@torch.no_grad()
def published_labels(
    model: MRCFA, clip: torch.Tensor, output_size: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels int64 [H', W'] and softmax scores [K, H', W'] of the last frame of a clip."""
    return labels_of(published_scores(model, clip), clip.shape[-2:], output_size)
