"""Sizes of one call, and the checks that no backend has to repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from vss2.errors import InputError

MAX_LEVELS = 16
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Levels(NamedTuple):
    """Where each level lies in the tokens: (height, width) and first token."""

    shapes: tuple[tuple[int, int], ...]
    starts: tuple[int, ...]


def check_tensors(
    value: torch.Tensor,
    spatial_shapes: torch.Tensor,
    level_start_index: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> None:
    """Raise `InputError` if shapes, dtypes or devices do not fit together."""
    if value.ndim != 4 or value.dtype not in FLOATS:
        raise InputError(
            "value must be a float tensor [N, S, M, D], "
            f"found {value.dtype} of shape {tuple(value.shape)}"
        )
    if value.shape[1] >= 2**31:
        raise InputError(f"value has {value.shape[1]} tokens; at most 2**31 - 1 can be indexed")
    batch, _, heads, _ = value.shape
    levels = spatial_shapes.shape[0]
    if locations.ndim != 6:
        raise InputError(
            f"sampling_locations must be [N, Q, M, L, P, 2], found shape {tuple(locations.shape)}"
        )
    queries, points = locations.shape[1], locations.shape[4]
    expected = {
        "spatial_shapes": (spatial_shapes, (levels, 2)),
        "level_start_index": (level_start_index, (levels,)),
        "sampling_locations": (locations, (batch, queries, heads, levels, points, 2)),
        "attention_weights": (weights, (batch, queries, heads, levels, points)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise InputError(f"{name} must have shape {shape}, found {tuple(tensor.shape)}")
    if not 1 <= levels <= MAX_LEVELS:
        raise InputError(f"there are {levels} levels; 1 to {MAX_LEVELS} are possible")
    for name, tensor in (("sampling_locations", locations), ("attention_weights", weights)):
        if tensor.dtype not in FLOATS or tensor.device != value.device:
            raise InputError(
                f"{name} must be a float tensor on {value.device} as value is, "
                f"found {tensor.dtype} on {tensor.device}"
            )


def read_levels(
    spatial_shapes: torch.Tensor, level_start_index: torch.Tensor, tokens: int
) -> Levels:
    """The levels as numbers; raise `InputError` if one does not lie within the `tokens`."""
    shapes: Sequence[Sequence[int]] = spatial_shapes.tolist()
    starts: Sequence[int] = level_start_index.tolist()
    for (height, width), start in zip(shapes, starts, strict=True):
        if height < 1 or width < 1 or start < 0 or start + height * width > tokens:
            raise InputError(
                f"a level of {height}x{width} tokens from token {start} on "
                f"does not lie within the {tokens} tokens of value"
            )
    return Levels(tuple((height, width) for height, width in shapes), tuple(starts))
