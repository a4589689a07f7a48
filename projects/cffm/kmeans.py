"""K-means as the published prototypes of CFFM++ were clustered, with a seed."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from vss2.errors import InputError


def random_points(points: torch.Tensor, count: int, seed: int, video: str) -> torch.Tensor:
    """First centres: `count` distinct points, drawn by the seed and the video's name.

    Args:
        points: [N, C].

    Returns:
        [count, C].

    Raises:
        InputError: fewer points than centres.
    """
    if len(points) < count:
        raise InputError(
            f"video {video!r} gives {len(points)} points at stride 8, too few for {count} "
            "prototypes"
        )
    rng = np.random.default_rng((seed, zlib.crc32(video.encode())))
    return points[torch.from_numpy(rng.choice(len(points), count, replace=False))]


def assign(points: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """The nearest centre of each point: int64 [N]; points [N, C], centers [K, C]."""
    # The norm of the point, the same for all centres, is left out.
    similarity = torch.addmm(-centers.square().sum(1), points, centers.T, alpha=2.0)
    return similarity.argmax(1)


def kmeans(
    points: torch.Tensor, start: torch.Tensor, max_iter: int = 10, tolerance: float = 1e-4
) -> torch.Tensor:
    """Lloyd's iteration; a centre without points becomes 0 and stays in the game, as published.

    Args:
        points: float [N, C].
        start: first centres [K, C].
        max_iter: iterations at most.
        tolerance: an iteration that moves the centres by a summed squared distance up to this is
            the last.

    Returns:
        Centres [K, C].
    """
    centers = start
    for _ in range(max_iter):
        labels = assign(points, centers)
        sums = torch.zeros_like(centers).index_add_(0, labels, points)
        counts = torch.bincount(labels, minlength=len(centers))
        moved = sums / counts.clamp(min=1)[:, None]
        change = (moved - centers).square().sum().item()
        centers = moved
        if change <= tolerance:
            break
    return centers
