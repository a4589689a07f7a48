"""local_correlation in PyTorch: tiles of queries against the windows that they can reach."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

TILE = 16  # cells to a side: larger ones compute more in vain, smaller ones copy more


def missing(device: torch.device) -> str | None:
    """It serves everywhere."""
    return None


def forward(
    query: torch.Tensor,
    keys: Sequence[torch.Tensor],
    radii: Sequence[float],
    top_k: int,
    repeats: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `local_correlation`; radii may be infinite."""
    _, height, width = query.shape
    values = query.new_full((height, width, top_k), -torch.inf)
    index = torch.zeros((height, width, top_k), dtype=torch.int64, device=query.device)
    grid = torch.arange(height * width, device=query.device).reshape(height, width)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            rows, columns = slice(top, top + TILE), slice(left, left + TILE)
            here = grid[rows, columns]
            cells = query[:, rows, columns].flatten(1).t()
            found, where, slot = [], [], 0
            for key, radius, repeat in zip(keys, radii, repeats, strict=True):
                value, place = _best(cells, here, key, radius, top_k, grid)
                for copy in range(min(repeat, top_k)):
                    found.append(value)
                    where.append(place + (slot + copy) * height * width)
                slot += repeat
            value, order = torch.cat(found, 1).sort(dim=1, descending=True, stable=True)
            place = torch.cat(where, 1).gather(1, order)
            kept = min(top_k, value.shape[1])
            values[rows, columns, :kept] = value[:, :kept].reshape(*here.shape, kept)
            index[rows, columns, :kept] = place[:, :kept].reshape(*here.shape, kept)
    index[values == -torch.inf] = 0
    return values.flatten(0, 1), index.flatten(0, 1)


def _best(
    cells: torch.Tensor,
    here: torch.Tensor,
    key: torch.Tensor,
    radius: float,
    top_k: int,
    grid: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and positions [N, <= k] of the best keys of one map, for `cells` [N, C].

    Args:
        here, grid: positions y * w + x of the cells, and of the whole map [h, w].
    """
    height, width = grid.shape
    y, x = here.flatten() // width, here.flatten() % width
    reach = min(math.ceil(radius), height + width) if radius < math.inf else height + width
    rows = slice(max(int(y[0]) - reach, 0), int(y[-1]) + reach + 1)
    columns = slice(max(int(x[0]) - reach, 0), int(x[-1]) + reach + 1)
    window = grid[rows, columns].flatten()
    products = cells @ key[:, rows, columns].flatten(1)
    if radius < math.inf:
        dy = y[:, None] - window // width
        dx = x[:, None] - window % width
        products.masked_fill_(dy * dy + dx * dx >= radius * radius, -torch.inf)
    value, order = products.topk(min(top_k, window.numel()), dim=1)
    return value, window[order]
