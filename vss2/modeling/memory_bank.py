"""A space-time memory: one key per position and frame, one value per object, read by top-k."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from vss2.layers.topk_softmax import (
    frame_topk,
    gaussian_log_kernel,
    l2_similarity,
    nearest_query,
    weighted_rows,
)

BLOCK = 16  # frames in one piece of memory
# Similarities in work at once: enough for a matrix product, few enough for a processor's cache.
SIMILARITIES = {"cpu": 2**22, "cuda": 2**26}


class MemoryEntry(NamedTuple):
    """What is remembered of one frame.

    Attributes:
        key: float [P, C_k], of every position, row by row.
        values: float [O, P, C_v], in the order of the session's objects.
    """

    key: torch.Tensor
    values: torch.Tensor


class FrameRows:
    """Rows of frames, [P, C] each, in blocks that never move: growing copies nothing."""

    def __init__(self) -> None:
        self.blocks: list[torch.Tensor] = []
        self.count = 0

    def append(self, rows: torch.Tensor) -> None:
        if self.count == len(self.blocks) * BLOCK:
            self.blocks.append(rows.new_empty(BLOCK, *rows.shape))
        self._frame(self.count).copy_(rows)
        self.count += 1

    def pop(self) -> None:
        """Forget the last frame."""
        self.count -= 1

    def remove(self, index: int) -> None:
        """Forget frame `index`; later ones move up."""
        for i in range(index, self.count - 1):
            self._frame(i).copy_(self._frame(i + 1))
        self.count -= 1

    def pieces(self) -> list[torch.Tensor]:
        """The filled part of each block, [F_b, P, C]."""
        return [
            block[: self.count - i * BLOCK]
            for i, block in enumerate(self.blocks)
            if self.count > i * BLOCK
        ]

    def weighted(self, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Sums of rows by `index` into F*P, with `weights`, both [Q, k]: [Q, C]."""
        pieces = [piece.flatten(0, 1) for piece in self.pieces()]
        if len(pieces) == 1:
            return weighted_rows(pieces[0], index, weights)
        total: torch.Tensor | None = None
        size = self.blocks[0].shape[1] * BLOCK
        for i, rows in enumerate(pieces):
            inside = index.div(size, rounding_mode="floor") == i
            ends = inside.sum(1).cumsum(0)
            offsets = torch.cat([ends.new_zeros(1), ends[:-1]])
            part = weighted_rows(rows, index[inside] - i * size, weights[inside], offsets)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def tensor(self) -> torch.Tensor:
        """All frames as one copy [F, P, C]."""
        return torch.cat(self.pieces())

    def _frame(self, index: int) -> torch.Tensor:
        return self.blocks[index // BLOCK][index % BLOCK]


class MemoryBank:
    """Frames in the order in which they came; an object knows those since it appeared.

    One similarity serves all objects. The last frame may be temporary: the next one replaces it.
    With a bound, the first frame always stays, so does as far as possible the first frame of each
    object, and of the rest the oldest goes.

    Args:
        top_k: positions that answer a query.
        kernel_sigma: of kernelized memory, in cells of the grid: a memory position answers
            queries near the one that it resembles most (Seong et al., Kernelized Memory Network
            for Video Object Segmentation, ECCV 2020); None = all queries alike.
        max_frames: bound, at least 2; None = none.
    """

    def __init__(self, top_k: int, kernel_sigma: float | None, max_frames: int | None):
        self.top_k = top_k
        self.kernel_sigma = kernel_sigma
        self.max_frames = max_frames
        self.clear()

    def clear(self) -> None:
        self._keys = FrameRows()
        self._norms = FrameRows()  # squared, of the keys: [P, 1]
        self._values: list[FrameRows] = []
        self._starts: list[int] = []  # of each object, its first frame's place in `_keys`
        self._temporary = False

    @property
    def num_frames(self) -> int:
        """Frames in memory, the temporary one included."""
        return self._keys.count

    @property
    def num_objects(self) -> int:
        return len(self._values)

    def num_positions(self, position: int) -> int:
        """Positions held for the object at `position`, without the temporary frame."""
        rows = self._values[position]
        return (rows.count - self._temporary) * rows.blocks[0].shape[1]

    def append(self, entry: MemoryEntry, temporary: bool = False) -> None:
        """Remember a frame; objects that the bank has not met begin with it."""
        if self._temporary:
            self._pop()
        for _ in range(len(self._values), len(entry.values)):
            self._values.append(FrameRows())
            self._starts.append(self._keys.count)
        self._append_key(entry.key)
        for rows, value in zip(self._values, entry.values, strict=True):
            rows.append(value)
        self._temporary = temporary
        if self.max_frames is not None and not temporary and self.num_frames > self.max_frames:
            self._remove(self._oldest_spare())

    def drop_object(self, position: int) -> None:
        """Forget one object; without any, everything."""
        del self._values[position], self._starts[position]
        if not self._values:
            self.clear()

    def read(self, query: torch.Tensor) -> torch.Tensor:
        """What each object's frames say of a frame.

        Args:
            query: keys [1, C_k, h, w].

        Returns:
            [O, C_v, h, w], channels last in memory.
        """
        height, width = query.shape[-2:]
        with torch.autocast(device_type=query.device.type, enabled=False):
            rows = query[0].float().permute(1, 2, 0).flatten(0, 1)  # [Q, C_k]
            known = self._keys.count * len(rows)
            chunk = max(1, SIMILARITIES.get(query.device.type, 2**22) // known)
            centres = None if self.kernel_sigma is None else self._centres(rows, chunk)
            parts = []
            for first in range(0, len(rows), chunk):
                scores = self._similarity(rows[first : first + chunk])
                if centres is not None and self.kernel_sigma is not None:
                    cells = torch.arange(first, first + len(scores), device=scores.device)
                    kernel = gaussian_log_kernel(cells, centres, width, self.kernel_sigma)
                    scores += kernel.view_as(scores)
                parts.append(self._readout(scores))
            readout = torch.cat(parts, dim=1)
        return readout.unflatten(1, (height, width)).permute(0, 3, 1, 2)

    def _similarity(self, queries: torch.Tensor) -> torch.Tensor:
        """[Q, F, P]."""
        positions = self._keys.blocks[0].shape[1]
        scores = queries.new_empty(len(queries), self._keys.count * positions)
        first = 0
        for keys, norms in self._known():
            l2_similarity(keys, norms, queries, out=scores[:, first : first + len(keys)])
            first += len(keys)
        return scores.unflatten(1, (-1, positions))

    def _known(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Keys [F_b * P, C_k] and their squared norms [F_b * P], block by block."""
        for keys, norms in zip(self._keys.pieces(), self._norms.pieces(), strict=True):
            yield keys.flatten(0, 1), norms.flatten()

    def _centres(self, queries: torch.Tensor, chunk: int) -> torch.Tensor:
        """The query that each memory position resembles most, int64 [M]."""
        found = []
        for keys, norms in self._known():
            best: tuple[torch.Tensor, torch.Tensor] | None = None
            for first in range(0, len(queries), chunk):
                best = nearest_query(keys, norms, queries[first : first + chunk], first, best)
            assert best is not None
            found.append(best[1])
        return torch.cat(found)

    def _readout(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores [Q, F, P] to what each object's values say, [O, Q, C_v]."""
        chosen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        out = []
        for rows, start in zip(self._values, self._starts, strict=True):
            if start not in chosen:
                values, index = frame_topk(scores[:, start:], self.top_k)
                chosen[start] = index, values.softmax(1)
            out.append(rows.weighted(*chosen[start]))
        return torch.stack(out)

    def _append_key(self, key: torch.Tensor) -> None:
        key = key.float().contiguous()
        self._keys.append(key)
        self._norms.append(key.square().sum(1, keepdim=True))

    def _pop(self) -> None:
        for rows in (self._keys, self._norms, *self._values):
            rows.pop()
        self._temporary = False

    def _oldest_spare(self) -> int:
        """The oldest frame that no object begins with, if there is none the oldest but one."""
        spare = (i for i in range(1, self.num_frames) if i not in self._starts)
        return next(spare, 1)

    def _remove(self, index: int) -> None:
        self._keys.remove(index)
        self._norms.remove(index)
        for position, start in enumerate(self._starts):
            if index >= start:
                self._values[position].remove(index - start)
            else:
                self._starts[position] = start - 1

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers; a bank that loads them gives the same bits."""
        if not self._values:
            return {}
        return {
            "keys": self._keys.tensor(),
            "values": [rows.tensor() for rows in self._values],
            "starts": list(self._starts),
            "temporary": self._temporary,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.clear()
        if not state:
            return
        for key in state["keys"].to(device):
            self._append_key(key)
        self._values = [_rows_of(values.to(device)) for values in state["values"]]
        self._starts = list(state["starts"])
        self._temporary = state["temporary"]


def _rows_of(frames: torch.Tensor) -> FrameRows:
    rows = FrameRows()
    for frame in frames:
        rows.append(frame)
    return rows
