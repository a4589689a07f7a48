"""Which tokens a window of focal attention sees: own, surround, and pooled neighbourhoods.

Focal attention (Yang et al., Focal Self-attention, NeurIPS 2021, section 3) in the form that CFFM
gives it (Sun et al., CVPR 2022, section 3.3). A map of nH x nW windows of `window` x `window`
tokens is followed by pooled grids; `WindowKeys` lists, for every window, the positions of its keys
in the concatenation of all these tokens and one zero token, so that one gather makes all keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

# Added to the logit of a key outside a pooled grid: part of the published networks, where such a
# key keeps a weight of e^-100 or so.
OUTSIDE = -100.0


class PooledGrid(NamedTuple):
    """A pooled grid and the patch of it that a window sees.

    Attributes:
        level: cells per window and side: the grid has (level*nH, level*nW) cells.
        kernel: odd side of the patch, whose centre is cell (level*wy, level*wx).
    """

    level: int
    kernel: int


class WindowKeys(NamedTuple):
    """Keys of every window.

    Attributes:
        positions: int64 [nH*nW, M], in the row-major tokens of the map, followed by those of
            each grid, followed by one zero token.
        mask: float32 [nH*nW, M], 0 or, where a patch reaches out of its grid, `OUTSIDE`.
    """

    positions: torch.Tensor
    mask: torch.Tensor


def surround_positions(window: int, expand: int) -> torch.Tensor:
    """Positions around a window, relative to its corner: int64 [S, 2] of (row, column).

    The window's square is shifted by `expand` to the lower right, lower left, upper right and upper
    left; of each shifted square the positions outside the window stay, row-major. Positions that
    two squares share occur twice, as published. On the CPU.
    """
    inside = range(window)
    positions = [
        (y, x)
        for down, right in ((expand, expand), (expand, -expand), (-expand, expand), (-expand,) * 2)
        for y in range(down, down + window)
        for x in range(right, right + window)
        if y not in inside or x not in inside
    ]
    return torch.tensor(positions, device="cpu")


def relative_index(window: int, kernel: int) -> torch.Tensor:
    """Entry of a bias table for each query of a window and key of a patch.

    With (dy, dx) = query position - key position, both counted from the corner of their own square:
    (dy + kernel - 1) * (window + kernel - 1) + dx + kernel - 1. Returns int64
    [window^2, kernel^2].
    """
    query, key = torch.arange(window), torch.arange(kernel)
    delta = query[:, None] - key[None, :] + kernel - 1  # [window, kernel]
    rows = delta[:, None, :, None] * (window + kernel - 1)
    return (rows + delta[None, :, None, :]).reshape(window**2, kernel**2)


@lru_cache(maxsize=32)
def window_keys(
    num_windows: tuple[int, int],
    window: int,
    expand: int,
    grids: tuple[PooledGrid, ...],
    device: torch.device,
) -> WindowKeys:
    """Keys of all windows of a map of `num_windows` = (nH, nW) windows.

    In this order: the window's own tokens; its surround (`surround_positions`), cyclic over the
    map, so that a window at one border sees the opposite one; its patch of every grid.
    """
    # A table made under inference_mode could not serve a later training step.
    with torch.inference_mode(False), torch.device("cpu"):
        height, width = num_windows[0] * window, num_windows[1] * window
        wy, wx = (
            t.reshape(-1, 1) for t in torch.meshgrid(*map(torch.arange, num_windows), indexing="ij")
        )
        square = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        positions = torch.cat((square, surround_positions(window, expand)))
        rows = (wy * window + positions[:, 0]) % height
        columns = (wx * window + positions[:, 1]) % width
        parts, inside = [rows * width + columns], [torch.ones_like(rows, dtype=torch.bool)]
        start = height * width
        zero = start + sum(g.level**2 for g in grids) * num_windows[0] * num_windows[1]
        for level, kernel in grids:
            cells = (level * num_windows[0], level * num_windows[1])
            patch = torch.cartesian_prod(torch.arange(kernel), torch.arange(kernel)) - kernel // 2
            rows, columns = wy * level + patch[:, 0], wx * level + patch[:, 1]
            valid = (rows >= 0) & (rows < cells[0]) & (columns >= 0) & (columns < cells[1])
            parts.append(torch.where(valid, start + rows * cells[1] + columns, zero))
            inside.append(valid)
            start += cells[0] * cells[1]
        mask = torch.zeros(parts[0].shape[0], sum(p.shape[1] for p in parts))
        mask[~torch.cat(inside, dim=1)] = OUTSIDE
        return WindowKeys(torch.cat(parts, dim=1).to(device), mask.to(device))


def pad_to_windows(x: torch.Tensor, window: int) -> torch.Tensor:
    """Zero-pad [B, h, w, C] at the bottom and right to multiples of `window`."""
    height, width = x.shape[1:3]
    pad = (-height % window, -width % window)
    return F.pad(x, (0, 0, 0, pad[1], 0, pad[0])) if any(pad) else x


def split_windows(x: torch.Tensor, window: int) -> torch.Tensor:
    """[B, nH*window, nW*window, C] to windows [B, nH*nW, window^2, C], all row-major."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def merge_windows(x: torch.Tensor, size: Sequence[int], window: int) -> torch.Tensor:
    """Inverse of `split_windows`, cropped to `size` = (h, w): [B, h, w, C]."""
    rows, columns = (-(-side // window) for side in size)
    x = x.unflatten(2, (window, window)).unflatten(1, (rows, columns))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, : size[0], : size[1]]


def pool_windows(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, side: int
) -> torch.Tensor:
    """One weighted sum per `side` x `side` square, the same for all channels.

    Args:
        x: [B, gh*side, gw*side, C].
        weight: [1, side^2], row-major.
        bias: [1].

    Returns:
        [B, gh, gw, C].
    """
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # [B, gh, side, gw, side, C]
    return torch.einsum("bhiwjc,ij->bhwc", x, weight.view(side, side)) + bias
