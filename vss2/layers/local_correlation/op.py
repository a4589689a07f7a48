"""The best matches of every cell of a feature map in other maps, as one function.

The affinity of two maps is never formed: what lies outside the radius is not computed, and of the
rest only the best products of each cell are kept. Used for label propagation (Jabri et al.,
Space-Time Correspondence as a Contrastive Random Walk, NeurIPS 2020, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from vss2.errors import InputError

from . import cpu_backend, torch_backend, triton_backend

# In order of preference; the last one serves everywhere.
BACKENDS = {"triton": triton_backend, "cpp": cpu_backend, "torch": torch_backend}


class Correlation(NamedTuple):
    """The best keys of every query cell, in falling order.

    Attributes:
        values: float32 [h*w, k], dot products; -inf where there are fewer than k keys.
        keys: int64 [h*w, k], slot * h*w + y * w + x of each key.
    """

    values: torch.Tensor
    keys: torch.Tensor


@torch.no_grad()
def local_correlation(
    query: torch.Tensor,
    keys: Sequence[torch.Tensor],
    radii: Sequence[float | None],
    top_k: int,
    repeats: Sequence[int] | None = None,
    backend: str | None = None,
) -> Correlation:
    """The `top_k` keys of all maps together with the largest dot products, for every cell.

    A key at (y', x') is allowed for the cell (y, x) if sqrt((y'-y)^2 + (x'-x)^2) < radius. Not
    differentiable. Of keys with equal products any may be taken, but of copies of one map the
    lower slots come first.

    Args:
        query: float32 [C, h, w].
        keys: maps of the same shape, dtype and device.
        radii: of each map, in cells; None allows all of its keys.
        top_k: k.
        repeats: in how many slots each map stands, one after the other; default one each. A map
            that stands in several is compared once.
        backend: "triton" (CUDA), "cpp" (compiled at first use) or "torch"; default the first that
            is there and takes the device.

    Raises:
        InputError: maps of different shapes, dtypes or devices; lists of different lengths; an
            unknown backend, or one that is not there.
    """
    repeats = [1] * len(keys) if repeats is None else list(repeats)
    _check(query, keys, radii, top_k, repeats)
    chosen = _backend(query, backend)
    limits = [math.inf if radius is None else float(radius) for radius in radii]
    return Correlation(*chosen.forward(query, list(keys), limits, top_k, repeats))


def read_labels(
    correlation: Correlation, labels: Sequence[torch.Tensor], temperature: float
) -> torch.Tensor:
    """The labels that the best keys carry, weighted by a softmax over their products.

    Args:
        correlation: of the query map.
        labels: of every slot, float32 [L, h, w].
        temperature: divides the products.

    Returns:
        float32 [L, h, w].
    """
    channels, height, width = labels[0].shape
    weights = (correlation.values / temperature).softmax(dim=1)
    table = torch.cat([slot.flatten(1).t() for slot in labels])
    read = F.embedding_bag(correlation.keys, table, per_sample_weights=weights, mode="sum")
    return read.t().reshape(channels, height, width)


def _check(
    query: torch.Tensor,
    keys: Sequence[torch.Tensor],
    radii: Sequence[float | None],
    top_k: int,
    repeats: Sequence[int],
) -> None:
    if query.ndim != 3 or query.dtype != torch.float32:
        raise InputError(
            f"the query is a float32 map (C, h, w), got {query.dtype} {tuple(query.shape)}"
        )
    for key in keys:
        if (key.shape, key.dtype, key.device) != (query.shape, query.dtype, query.device):
            raise InputError(
                f"keys must be maps like the query, {query.dtype} {tuple(query.shape)} on "
                f"{query.device}; one is {key.dtype} {tuple(key.shape)} on {key.device}"
            )
    if not keys or not len(keys) == len(radii) == len(repeats):
        raise InputError(
            f"every map needs a radius and a number of repeats, and there must be one: got "
            f"{len(keys)} maps, {len(radii)} radii, {len(repeats)} repeats"
        )
    if top_k < 1 or min(repeats) < 1 or any(r is not None and not r > 0 for r in radii):
        raise InputError(
            f"top_k and repeats are at least 1 and a radius is above 0, got top_k={top_k}, "
            f"repeats={list(repeats)}, radii={list(radii)}"
        )


def _backend(query: torch.Tensor, name: str | None) -> Any:
    if name is None:
        return next(b for b in BACKENDS.values() if b.missing(query.device) is None)
    if name not in BACKENDS:
        raise InputError(f"backend is one of {', '.join(BACKENDS)}, not {name!r}")
    reason = BACKENDS[name].missing(query.device)
    if reason is not None:
        raise InputError(f"the backend {name!r} of local_correlation cannot serve: {reason}")
    return BACKENDS[name]
