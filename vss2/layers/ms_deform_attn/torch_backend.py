"""The op in plain PyTorch, level by level: any device, one level of samples in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .problem import Levels


class Level(NamedTuple):
    """One level with the heads in the batch, as grid sampling takes it.

    Attributes:
        tokens: where the level lies in the tokens.
        maps: [N*M, D, H, W].
        grid: [N*M, P, Q, 2], (x, y) from -1 to 1; queries last, as sums over points then run
            along long rows.
        weights: [N*M, 1, P, Q].
    """

    tokens: slice
    maps: torch.Tensor
    grid: torch.Tensor
    weights: torch.Tensor


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve; it always can."""
    return None


def forward(
    value: torch.Tensor, levels: Levels, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """[N, Q, M*D]; see `ms_deform_attn` for the arguments."""
    dtype = value.dtype
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    out = locations.new_zeros(batch * heads, channels, queries)
    for level in _each_level(value.to(locations.dtype), levels, locations, weights):
        samples = F.grid_sample(level.maps, level.grid, align_corners=False)
        for point in range(samples.shape[2]):
            out.addcmul_(samples[:, :, point], level.weights[:, :, point])
    return out.view(batch, heads * channels, queries).transpose(1, 2).to(dtype).contiguous()


def backward(
    grad: torch.Tensor,
    value: torch.Tensor,
    levels: Levels,
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of value, locations and weights; samples are computed again, not kept."""
    dtype = value.dtype
    batch, heads = weights.shape[0], weights.shape[2]
    grad = grad.to(locations.dtype).unflatten(-1, (heads, -1))
    grad = grad.permute(0, 2, 3, 1).flatten(0, 1).contiguous()[:, :, None]  # [N*M, D, 1, Q]
    value = value.to(locations.dtype)
    grad_value = torch.zeros_like(value, memory_format=torch.contiguous_format)
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    for index, level in enumerate(_each_level(value, levels, locations, weights)):
        samples = F.grid_sample(level.maps, level.grid, align_corners=False)
        grad_weights[:, :, :, index] = _split(samples.mul_(grad).sum(1), heads)
        del samples
        grad_maps, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad * level.weights, level.maps, level.grid, 0, 0, False, [True, True]
        )
        grad_maps = grad_maps.flatten(2).unflatten(0, (batch, heads)).permute(0, 3, 1, 2)
        grad_value[:, level.tokens] += grad_maps
        grad_locations[:, :, :, index] = _split(grad_grid, heads).mul_(2)
    return grad_value.to(dtype), grad_locations, grad_weights


def _each_level(
    value: torch.Tensor, levels: Levels, locations: torch.Tensor, weights: torch.Tensor
) -> Iterator[Level]:
    # What is outside every map stays outside within +-3, where no integer overflows.
    grids = (2 * locations - 1).nan_to_num_(nan=-3.0).clamp_(-3.0, 3.0)
    for index, ((height, width), start) in enumerate(zip(*levels, strict=True)):
        tokens = slice(start, start + height * width)
        maps = value[:, tokens].permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (height, width))
        grid = grids[:, :, :, index].permute(0, 2, 3, 1, 4).flatten(0, 1).contiguous()
        scale = weights[:, :, :, index].permute(0, 2, 3, 1).flatten(0, 1).contiguous()[:, None]
        yield Level(tokens, maps, grid, scale)


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[N*M, P, Q, ...] to [N, Q, M, P, ...]."""
    return x.unflatten(0, (-1, heads)).movedim(3, 1)
