"""The attention module around the op, with the parameters that published checkpoints name.

Deformable DETR (Zhu et al., ICLR 2021), section 4.1, equations 2 and 3.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from vss2.errors import InputError

from .op import ms_deform_attn


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention: each query samples few points of each level.

    Offsets and weights of the points are linear in the query; the softmax runs over all levels and
    points of a head. Coordinates and softmax are computed in float32 at least, also under autocast
    and in half precision, where a half coordinate would be off by hundredths of a pixel.

    Args:
        embed_dim: channels C of queries and tokens.
        num_levels: L.
        num_heads: M; has to divide `embed_dim`.
        num_points: P, points per head and level.
    """

    def __init__(
        self, embed_dim: int = 256, num_levels: int = 4, num_heads: int = 8, num_points: int = 4
    ) -> None:
        super().__init__()
        if embed_dim % num_heads != 0:
            raise InputError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.embed_dim = embed_dim
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, samples * 2)
        self.attention_weights = nn.Linear(embed_dim, samples)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Head m looks in direction 2*pi*m/M, its point p at p+1 steps; all weights are equal."""
        angles = torch.arange(self.num_heads, device="cpu") * (2.0 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, device="cpu")
        offsets = directions[:, None, None, :] * steps[None, None, :, None]
        offsets = offsets.expand(-1, self.num_levels, -1, -1)  # [M, L, P, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        for zeroed in (
            self.sampling_offsets.weight,
            self.attention_weights.weight,
            self.attention_weights.bias,
            self.value_proj.bias,
            self.output_proj.bias,
        ):
            nn.init.zeros_(zeroed)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)

    def forward(
        self,
        query: torch.Tensor,
        reference_points: torch.Tensor,
        tokens: torch.Tensor,
        spatial_shapes: torch.Tensor,
        level_start_index: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: [N, Q, C].
            reference_points: [N, Q, L, 2], points (x, y), or [N, Q, L, 4], boxes (center x,
                center y, width, height); 0 to 1 spans the map from edge to edge.
            tokens: [N, S, C], the maps of all levels, each row by row, one after the other.
            spatial_shapes: int64 [L, 2], (height, width) of each level; best on the CPU, as
                `ms_deform_attn` says.
            level_start_index: int64 [L], first token of each level, likewise.
            padding_mask: bool [N, S], True where a token is padding and counts as zero.

        Returns:
            [N, Q, C].
        """
        if reference_points.shape[-1] not in (2, 4):
            raise InputError(
                "reference_points must end in 2 (points) or 4 (boxes), "
                f"found shape {tuple(reference_points.shape)}"
            )
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        value = self.value_proj(tokens)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (heads, -1))
        offsets = at_least_float32(self.sampling_offsets(query))
        offsets = offsets.unflatten(-1, (heads, levels, points, 2))
        weights = at_least_float32(self.attention_weights(query))
        weights = short_softmax(weights.unflatten(-1, (heads, levels * points)))
        weights = weights.unflatten(-1, (levels, points))
        reference = at_least_float32(reference_points)
        if reference.shape[-1] == 2:
            locations = point_locations(reference, offsets, spatial_shapes)
        else:
            reference = reference[:, :, None, :, None, :]
            locations = reference[..., :2] + offsets * (0.5 / points) * reference[..., 2:]
        sampled = ms_deform_attn(value, spatial_shapes, level_start_index, locations, weights)
        return self.output_proj(sampled)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def point_locations(
    reference: torch.Tensor, offsets: torch.Tensor, spatial_shapes: torch.Tensor
) -> torch.Tensor:
    """Reference points [N, Q, L, 2] plus offsets [N, Q, M, L, P, 2] in pixels of their level.

    Done on rows of L*P*2 numbers: to broadcast over rows of two costs a CPU eight times as much.
    """
    points = offsets.shape[4]
    size = spatial_shapes.flip(-1).to(offsets)[:, None].expand(-1, points, -1).flatten()
    origin = reference[:, :, None, :, None].expand(-1, -1, -1, -1, points, -1).flatten(3)
    return (origin + offsets.flatten(3) / size).unflatten(3, offsets.shape[3:])


def short_softmax(x: torch.Tensor) -> torch.Tensor:
    """Softmax over a last dimension of some numbers.

    PyTorch's own takes a CPU six times as long where rows are that short.
    """
    if x.device.type != "cpu":
        return x.softmax(dim=-1)
    x = (x - x.amax(dim=-1, keepdim=True)).exp()
    return x / x.sum(dim=-1, keepdim=True)
