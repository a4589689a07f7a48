"""Affinities between a target frame and its references, and the relations among them.

Sun et al., Mining Relations among Cross-Frame Affinities for Video Semantic Segmentation, ECCV
2022: selective token masking (section 3.4), single-scale affinity refinement (SAR) and multi-scale
affinity aggregation (MAA, section 3.3). Parameter names are those of the published checkpoints.

Letters: B clips, R references, N tokens of a reference (the 1/32 grid, row-major), S selected
tokens of a reference, P positions of the target at some scale, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from vss2.errors import InputError

SCALES = (2, 3, 4)  # stages of the backbone whose affinities are used: strides 8, 16 and 32

# Blocks (channels in, channels out, kernel) of the refinement net. The release's B1 model has two
# per module, its other sizes have one.
REFINEMENTS: dict[int, dict[str, tuple[tuple[int, int, int], ...]]] = {
    1: {
        "encoder_layer4": ((1, 1, 3),),
        "encoder_layer3": ((1, 1, 5),),
        "encoder_layer2": ((1, 1, 5),),
        "encoder_layer4to3": ((1, 1, 3),),
        "encoder_layer3to2": ((1, 1, 3),),
    },
    2: {
        "encoder_layer4": ((1, 1, 3), (1, 2, 3)),
        "encoder_layer3": ((1, 1, 3), (1, 2, 3)),
        "encoder_layer2": ((1, 1, 5), (1, 2, 3)),
        "encoder_layer4to3": ((2, 2, 3), (2, 2, 3)),
        "encoder_layer3to2": ((2, 2, 3), (2, 1, 3)),
    },
}


Images = list[torch.Tensor]
"""Affinity images of M tokens: for each of their channels a map [B, M, h, w].

In memory the tokens come last, as the matrix product that makes the affinities leaves them. So a
convolution that is the same for every token is a depthwise one, and a CPU works on many tokens at
once. A batch of B*M images with one channel each takes it dozens of times as long.
"""


class TokenConv(nn.Module):
    """One small convolution for the images of all tokens."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int):
        super().__init__()
        self.conv2 = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, images: Images) -> Images:
        return [
            sum_of(self._convolved(x, out, channel) for channel, x in enumerate(images))
            for out in range(self.conv2.out_channels)
        ]

    def _convolved(self, x: torch.Tensor, out: int, channel: int) -> torch.Tensor:
        conv, tokens = self.conv2, x.shape[1]
        weight = conv.weight[out, channel].expand(tokens, 1, -1, -1)
        assert conv.bias is not None
        bias = conv.bias[out].expand(tokens) if channel == 0 else None
        return F.conv2d(x, weight, bias, padding=conv.padding, groups=tokens)


class TokenNorm(nn.GroupNorm):
    """Normalises the image of each token over its channels and positions."""

    def __init__(self, channels: int):
        super().__init__(1, channels)

    def forward(self, images: Images) -> Images:
        # Affinities lie far from zero. The variance is taken around their mean, because the
        # difference of two sums, as in PyTorch's CPU kernel for this layout, loses digits.
        mean = sum_of(x.mean((2, 3), keepdim=True) for x in images) / len(images)
        images = [x - mean for x in images]
        squares = (x.square().mean((2, 3), keepdim=True) for x in images)
        scale = (sum_of(squares) / len(images) + self.eps).rsqrt()
        return [
            torch.addcmul(bias, x, scale * weight)
            for x, weight, bias in zip(images, self.weight, self.bias, strict=True)
        ]


class TokenReLU(nn.Module):
    """ReLU in place."""

    def forward(self, images: Images) -> Images:
        return [x.relu_() for x in images]


def sum_of(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of at least one tensor, without a start value."""
    return functools.reduce(torch.add, parts)


class AffinityRefinement(nn.Module):
    """SAR and MAA: affinity images of three scales, refined and merged from coarse to fine.

    Args:
        layers: blocks per module, 1 or 2, see `REFINEMENTS`.
    """

    def __init__(self, layers: int):
        super().__init__()
        if layers not in REFINEMENTS:
            raise InputError(f"refinement_layers is 1 or 2, got {layers}")
        for name, blocks in REFINEMENTS[layers].items():
            parts: list[nn.Module] = []
            for in_channels, out_channels, kernel in blocks:
                conv = TokenConv(in_channels, out_channels, kernel)
                parts += [conv, TokenNorm(out_channels), TokenReLU()]
            self.add_module(name, nn.Sequential(*parts))

    def forward(self, affinities: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Affinities [B, R*S, h_i, w_i] at scales i = 2, 3, 4 to one map [B, R*S, h_2, w_2]."""
        refined = {
            scale: self.get_submodule(f"encoder_layer{scale}")([affinities[scale]])
            for scale in SCALES
        }
        merged = self.encoder_layer4to3(add_enlarged(refined[4], refined[3]))
        (result,) = self.encoder_layer3to2(add_enlarged(merged, refined[2]))
        return result


def add_enlarged(coarse: Images, fine: Images) -> Images:
    """`fine` plus `coarse` at its size; here alone bilinear resizing keeps corners at corners."""
    size = fine[0].shape[-2:]
    return [
        F.interpolate(x, size=size, mode="bilinear", align_corners=True) + y
        for x, y in zip(coarse, fine, strict=True)
    ]


class Attention(NamedTuple):
    """From target positions to the selected tokens of the references.

    Attributes:
        logits: float [B, P, R, S] at stride 8, before the softmax over S.
        selected: int64 [B, R, S], token indices in ascending order.
    """

    logits: torch.Tensor
    selected: torch.Tensor


class CrossFrameAffinity(nn.Module):
    """Affinities of the target to selected reference tokens, refined into an attention.

    Queries come from the target and keys from the references. Affinities are plain dot products.

    Args:
        channels: of stages 2, 3 and 4.
        keep_ratio: share of a reference's tokens that are selected, rounded down.
        score_top_k: a token's score is the sum of its so many largest affinities at stride 32.
        refinement_layers: see `AffinityRefinement`.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        keep_ratio: float,
        score_top_k: int,
        refinement_layers: int,
    ):
        super().__init__()
        if not 0.0 < keep_ratio <= 1.0:
            raise InputError(f"keep_ratio lies between 0 and 1, got {keep_ratio}")
        if score_top_k < 1:
            raise InputError(f"score_top_k must be at least 1, got {score_top_k}")
        self.keep_ratio = keep_ratio
        self.score_top_k = score_top_k
        for index, width in enumerate(channels, start=1):
            self.add_module(f"q{index}", nn.Linear(width, width))
            self.add_module(f"k{index}", nn.Linear(width, width))
        self.hpn = AffinityRefinement(refinement_layers)

    def num_selected(self, tokens: int) -> int:
        """S for references of N = `tokens`."""
        return int(tokens * self.keep_ratio)

    def query(self, scale: int, feature: torch.Tensor) -> torch.Tensor:
        """Map [B, C, h, w] of stage `scale` of the target to [B, P, C]."""
        return self.get_submodule(f"q{scale - 1}")(feature.flatten(2).transpose(1, 2))

    def key(self, scale: int, feature: torch.Tensor) -> torch.Tensor:
        """Map [B, C, h_4, w_4] of stage `scale`, reduced to stride 32, to [B, N, C]."""
        return self.get_submodule(f"k{scale - 1}")(feature.flatten(2).transpose(1, 2))

    def scores(self, affinity: torch.Tensor) -> torch.Tensor:
        """Affinity [B, P, R, N] at stride 32 to the score of each token, [B, R, N]."""
        return affinity.topk(self.score_top_k, dim=1).values.sum(1)

    @torch.no_grad()
    def select(self, affinity: torch.Tensor) -> torch.Tensor:
        """Affinity [B, P, R, N] at stride 32 to the selected tokens, int64 [B, R, S] ascending."""
        count = self.num_selected(affinity.shape[-1])
        return self.scores(affinity).topk(count, dim=-1, sorted=False).indices.sort(-1).values

    def affinities(
        self, target: Mapping[int, torch.Tensor], keys: Mapping[int, torch.Tensor]
    ) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """Affinity images [B, R*S, h_i, w_i] by scale, and the selected tokens [B, R, S]."""
        coarse = multiply(self.query(4, target[4]), keys[4])
        selected = self.select(coarse)
        # The tokens that fall out are never multiplied at the finer scales.
        images = {4: coarse.take_along_dim(selected[:, None], dim=3)}
        for scale in (3, 2):
            chosen = keys[scale].take_along_dim(selected[..., None], dim=2)
            images[scale] = multiply(self.query(scale, target[scale]), chosen)
        return {i: as_images(images[i], target[i].shape[-2:]) for i in SCALES}, selected

    def forward(
        self, target: Mapping[int, torch.Tensor], keys: Mapping[int, torch.Tensor]
    ) -> Attention:
        """The attention of one target per clip to its references.

        Args:
            target: maps [B, C_i, h_i, w_i] of stages 2, 3 and 4.
            keys: [B, R, N, C_i] for the same stages, as `key` makes them.
        """
        with torch.autocast(device_type=target[4].device.type, enabled=False):
            target = {scale: full_precision(value) for scale, value in target.items()}
            keys = {scale: full_precision(value) for scale, value in keys.items()}
            images, selected = self.affinities(target, keys)
            refined = self.hpn(images)
            logits = refined.flatten(2).transpose(1, 2)
            return Attention(logits.unflatten(2, tuple(selected.shape[1:])), selected)


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """`x` in float32 at least: selection and softmax do not bear less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def multiply(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Dot products of [B, P, C] with [B, R, N, C]: [B, P, R, N], in one matrix product."""
    product = query @ key.flatten(1, 2).transpose(1, 2)
    return product.unflatten(2, tuple(key.shape[1:3]))


def as_images(affinity: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """[B, P, R, S] to a map [B, R*S, h, w] in channels_last memory; nothing moves.

    A plain transpose would leave PyTorch in doubt about the layout where B is 1, and make every
    convolution copy its input.
    """
    return affinity.flatten(2).unflatten(1, size).permute(0, 3, 1, 2)


def propagate(attention: Attention, values: torch.Tensor) -> torch.Tensor:
    """What each reference says of the target (section 3.5).

    Args:
        attention: of P positions to S selected tokens of R references.
        values: [B, R, N, E], of all tokens.

    Returns:
        float [B, R, P, E].
    """
    with torch.autocast(device_type=values.device.type, enabled=False):
        chosen = full_precision(values).take_along_dim(attention.selected[..., None], dim=2)
        return attention.logits.softmax(-1).transpose(1, 2) @ chosen


def propagate_mean(attention: Attention, values: torch.Tensor) -> torch.Tensor:
    """The mean over the references of `propagate`, [B, P, E], in one matrix product."""
    with torch.autocast(device_type=values.device.type, enabled=False):
        chosen = full_precision(values).take_along_dim(attention.selected[..., None], dim=2)
        total = attention.logits.softmax(-1).flatten(2) @ chosen.flatten(1, 2)
        return total / values.shape[1]
