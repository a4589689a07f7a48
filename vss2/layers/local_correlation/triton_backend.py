"""local_correlation in Triton, for CUDA."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence

import torch

BLOCK_CHANNELS = 64
EMPTY = -(2**63)


def missing(device: torch.device) -> str | None:
    """Why this backend cannot serve there; None if it can."""
    if device.type != "cuda":
        return f"it is for CUDA, the maps are on {device}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None


def forward(
    query: torch.Tensor,
    keys: Sequence[torch.Tensor],
    radii: Sequence[float],
    top_k: int,
    repeats: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `local_correlation`; radii may be infinite.

    Maps that stand in one slot share one list of candidates; others have a list of their own,
    which is then repeated.
    """
    cells = query.shape[1] * query.shape[2]
    keep = max(16, 1 << (top_k - 1).bit_length())
    shared = _empty(query, keep)
    values, places, slot = [], [], 0
    for key, radius, repeat in zip(keys, radii, repeats, strict=True):
        best = shared if repeat == 1 else _empty(query, keep)
        _compare(query, key, radius, slot * cells, best)
        if repeat > 1:
            value, place = _unpacked(best[:, :top_k])
            for copy in range(min(repeat, top_k)):
                values.append(value)
                places.append(place + copy * cells)
        slot += repeat
    value, place = _unpacked(shared[:, :top_k])
    value, order = torch.cat([value, *values], 1).sort(dim=1, descending=True, stable=True)
    value = value[:, :top_k].contiguous()
    place = torch.cat([place, *places], 1).gather(1, order[:, :top_k])
    return value, place.masked_fill(value == -torch.inf, 0)


def _empty(query: torch.Tensor, keep: int) -> torch.Tensor:
    cells = query.shape[1] * query.shape[2]
    return torch.full((cells, keep), EMPTY, dtype=torch.int64, device=query.device)


def _compare(
    query: torch.Tensor, key: torch.Tensor, radius: float, first_place: int, best: torch.Tensor
) -> None:
    """Let the keys of one map enter `best`, int64 [h*w, keep]."""
    from .triton_kernel import SIDE, best_kernel

    channels, height, width = query.shape
    query, key = (x if x.stride(2) == 1 else x.contiguous() for x in (query, key))
    unlimited = math.isinf(radius)
    tiles = -(-height // SIDE) * -(-width // SIDE)
    best_kernel[(tiles,)](
        query,
        key,
        best,
        channels,
        height,
        width,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        height + width if unlimited else math.ceil(radius),
        -1.0 if unlimited else radius * radius,
        first_place,
        SIDE=SIDE,
        KEEP=best.shape[1],
        BLOCK_C=BLOCK_CHANNELS,
    )


def _unpacked(best: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Products and places of candidates; -inf for none."""
    high = (best >> 32).to(torch.int32)
    bits = high ^ ((high >> 31) & 0x7FFFFFFF)
    value = bits.view(torch.float32).masked_fill(best == EMPTY, -torch.inf)
    return value, 0x7FFFFFFF - (best & 0xFFFFFFFF)
