"""Label propagation the published way, on the features of a vss2 model: the yardstick of its speed.

For every target frame the features of its context are copied side by side, the affinity of all of
its keys with all queries is formed, a mask over pairs of cells adds -1e10 to what lies outside the
radius, and the best keys are searched down the columns of that matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vss2.projects.sfc import SFC


def encode(model: SFC, frame: torch.Tensor) -> torch.Tensor:
    """Features [C, h, w] of a frame uint8 [3, H, W]."""
    return model.encode(model.normalize(frame[None]))[0]


def radius_mask(height: int, width: int, radius: float) -> torch.Tensor:
    """[P, P]: 0 for pairs of cells within the radius, else -1e10; once per video."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    cells = torch.stack([y.flatten(), x.flatten()], dim=1).float()
    return (torch.cdist(cells, cells) >= radius).float() * -1e10


def gather_keys(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """[C, T, P]: the context of one target frame."""
    return torch.stack([frame.flatten(1) for frame in features], dim=1)


def propagate(
    keys: torch.Tensor,
    query: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor,
    top_k: int,
    temperature: float,
) -> torch.Tensor:
    """Soft labels [L, Q] of some queries.

    Args:
        keys: [C, T, P], slot 0 without a limit.
        query: [C, Q].
        labels: [L, T, P].
        mask: [P, Q].
    """
    affinity = torch.einsum("ctp,cq->tpq", keys, query)
    affinity[1:] += mask
    affinity = affinity.flatten(0, 1).div_(temperature)
    values, index = affinity.topk(top_k, dim=0)
    weights = values.softmax(dim=0)
    return (labels.flatten(1)[:, index] * weights).sum(1)
