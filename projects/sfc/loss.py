"""Agreement of two views where they show the same place.

Hu et al., Semantic-Aware Fine-Grained Correspondence, ECCV 2022, section 3.2; the assignment is
that of Xie et al., Propagate Yourself (PixPro), CVPR 2021, equation 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Cells(NamedTuple):
    """Where the cells of views lie in their frames.

    Attributes:
        centres: float [N, h*w, 2], (x, y) in units of the frame's sides.
        diagonal: float [N], of a cell.
    """

    centres: torch.Tensor
    diagonal: torch.Tensor


def cells(boxes: torch.Tensor, height: int, width: int) -> Cells:
    """The grid of height x width cells over each box.

    Args:
        boxes: float [N, 4], x0, y0, x1, y1 in units of the frame's sides.
    """
    x0, y0, x1, y1 = boxes.unbind(1)
    step_x, step_y = (x1 - x0) / width, (y1 - y0) / height
    across = torch.arange(width, device=boxes.device) + 0.5
    down = torch.arange(height, device=boxes.device) + 0.5
    x = across * step_x[:, None] + x0[:, None]
    y = down * step_y[:, None] + y0[:, None]
    x, y = x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)
    centres = torch.stack([x.flatten(1), y.flatten(1)], dim=2)
    return Cells(centres, (step_x.square() + step_y.square()).sqrt())


def positive_pairs(query: Cells, key: Cells, radius: float) -> torch.Tensor:
    """Pairs of cells nearer than `radius` diagonals of the larger cell: bool [N, P, P]."""
    apart = query.centres[:, :, None] - key.centres[:, None]
    distance = apart.square().sum(3).sqrt()
    return distance / torch.maximum(query.diagonal, key.diagonal)[:, None, None] < radius


def correspondence_loss(
    query: torch.Tensor,
    key: torch.Tensor,
    query_boxes: torch.Tensor,
    key_boxes: torch.Tensor,
    radius: float,
) -> torch.Tensor:
    """-2 times the mean cosine of positive pairs, averaged over samples; from -2 to 2.

    A sample whose views do not overlap counts as 0.

    Args:
        query: predictions, float [N, C, h, w], normalised over C.
        key: targets of the same shape, without gradient.
        query_boxes, key_boxes: float [N, 4], see `cells`.
        radius: see `positive_pairs`.
    """
    with torch.autocast(device_type=query.device.type, enabled=False):
        size = (query.shape[2], query.shape[3])
        with torch.no_grad():
            pairs = positive_pairs(cells(query_boxes, *size), cells(key_boxes, *size), radius)
            counts = pairs.sum((1, 2))
            # The sum of each cell's targets: pairs need not be kept for the gradient.
            wanted = pairs.float() @ key.float().flatten(2).transpose(1, 2)
        agreement = (query.float().flatten(2).transpose(1, 2) * wanted).sum((1, 2))
        return -2 * (agreement / (counts + 1e-6)).mean()
