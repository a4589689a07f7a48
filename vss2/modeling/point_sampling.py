"""Masks at points instead of pixels (PointRend, Kirillov et al., CVPR 2020, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

# (name, number of rows R, number of points P, device) -> float32 [R, P, 2], (x, y) in [0, 1). The
# name says what the draw is for, so that a test can hand in recorded points.
DrawPoints = Callable[[str, int, int, torch.device], torch.Tensor]


def uniform_points(name: str, rows: int, points: int, device: torch.device) -> torch.Tensor:
    """Points from the generator of the device, which a checkpoint restores."""
    return torch.rand(rows, points, 2, device=device)


def sample_points(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Bilinear samples (align_corners=False, zeros outside).

    Args:
        maps: float [N, C, h, w].
        points: [N, P, 2], (x, y); 0 to 1 spans a map from edge to edge.

    Returns:
        [N, C, P].
    """
    grid = 2.0 * points[:, :, None].to(maps.dtype) - 1.0
    return F.grid_sample(maps, grid, align_corners=False).squeeze(3)


@torch.no_grad()
def uncertain_points(
    logits: torch.Tensor,
    draw: DrawPoints,
    name: str,
    num_points: int,
    oversample_ratio: float,
    importance_ratio: float,
) -> torch.Tensor:
    """Points of which a share lies where mask logits are close to 0.

    Of `oversample_ratio * num_points` uniform candidates, those `importance_ratio * num_points`
    with the smallest |logit| stay; new uniform points fill up.

    Args:
        logits: float32 [R, h, w].
        draw: gives the candidates, as `<name>.a`, and the others, as `<name>.b`.

    Returns:
        [R, num_points, 2].
    """
    rows, device = logits.shape[0], logits.device
    candidates = draw(f"{name}.a", rows, int(num_points * oversample_ratio), device)
    certainty = sample_points(logits[:, None], candidates)[:, 0].abs()
    kept = int(importance_ratio * num_points)
    chosen = certainty.topk(kept, dim=1, largest=False).indices
    points = candidates.gather(1, chosen[:, :, None].expand(-1, -1, 2))
    if kept == num_points:
        return points
    return torch.cat((points, draw(f"{name}.b", rows, num_points - kept, device)), dim=1)
