"""Reading a memory of frames by the softmax of the k best similarities, without a dense affinity.

Cheng et al., Rethinking Space-Time Networks with Improved Memory Coverage for Efficient Video
Object Segmentation, NeurIPS 2021, sections 3.2 and 3.3 (negative squared L2 distance, top-k).
Letters: Q queries, F memory frames, P positions of a frame, M = F*P, C channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def l2_similarity(
    keys: torch.Tensor,
    squared_norms: torch.Tensor,
    queries: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """(2 q.k - |k|^2) / sqrt(C): minus the squared distance, without the query's own norm.

    Args:
        keys: [M, C].
        squared_norms: [M], of the keys.
        queries: [Q, C].
        out: [Q, M], where the result goes.

    Returns:
        [Q, M].
    """
    scale = 1 / math.sqrt(keys.shape[1])
    return torch.addmm(-scale * squared_norms, queries, keys.t(), alpha=2 * scale, out=out)


def frame_topk(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of F*P scores, exact, at about the cost of the k largest of P.

    A score among the k largest lies at a position whose maximum over the frames is among the k
    largest such maxima, so only k of P positions are looked at closely.

    Args:
        scores: [Q, F, P].
        k: at most F*P are taken.

    Returns:
        Values and their indices into F*P, both [Q, min(k, F*P)], in no particular order.
    """
    queries, frames, positions = scores.shape
    k = min(k, frames * positions)
    few = min(k, positions)
    if frames == 1 or few == positions:
        values, index = scores.reshape(queries, -1).topk(k, dim=1, sorted=False)
        return values, index
    columns = scores.amax(1).topk(few, dim=1, sorted=False).indices  # [Q, few]
    close = scores.gather(2, columns[:, None].expand(queries, frames, few))
    values, index = close.reshape(queries, -1).topk(k, dim=1, sorted=False)
    frame = index.div(few, rounding_mode="floor")
    return values, frame * positions + columns.gather(1, index % few)


def nearest_query(
    keys: torch.Tensor,
    squared_norms: torch.Tensor,
    queries: torch.Tensor,
    first: int,
    best: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each key the nearest of these queries, numbered from `first`, and of `best` so far.

    Returns:
        Similarity including the query's own norm, and query number, both [M].
    """
    scores = l2_similarity(keys, squared_norms, queries)
    scores = scores - queries.square().sum(1, keepdim=True) / math.sqrt(keys.shape[1])
    value, index = scores.max(0)
    index = index + first
    if best is None:
        return value, index
    closer = value > best[0]
    return torch.where(closer, value, best[0]), torch.where(closer, index, best[1])


def gaussian_log_kernel(
    queries: torch.Tensor, centres: torch.Tensor, width: int, sigma: float
) -> torch.Tensor:
    """-d^2 / (2 sigma^2), d the distance between grid cells: [Q, M].

    Args:
        queries: int64 [Q], cells numbered row by row.
        centres: int64 [M], likewise.
        width: cells in a row of the grid.
        sigma: in cells.
    """
    rows = queries.div(width, rounding_mode="floor")[:, None] - centres.div(
        width, rounding_mode="floor"
    )
    columns = (queries % width)[:, None] - centres % width
    return -(rows.square() + columns.square()).float() / (2 * sigma**2)


def weighted_rows(
    rows: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor,
    offsets: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weighted sums of rows, one per query, without a copy of the rows.

    Args:
        rows: [M, C].
        index: int64 [Q, k], rows of each query; or [n], in the order of their queries.
        weights: of the shape of `index`.
        offsets: int64 [Q], where each query's rows begin in an `index` [n].

    Returns:
        [Q, C], of the type of `rows`.
    """
    weights = weights.to(rows.dtype)
    return F.embedding_bag(index, rows, offsets, mode="sum", per_sample_weights=weights)
