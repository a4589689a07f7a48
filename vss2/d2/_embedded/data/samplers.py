"""Index streams that are split over the ranks of a distributed run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from ..utils import comm


class TrainingSampler(Sampler):
    """Endless stream of indices: one permutation of `range(size)` after the other.

    All ranks build the same stream from the same seed, and rank r of W takes the items r, r + W,
    r + 2W, ... of it. The pieces do not restart at an epoch's end, so `size` need not divide by W.

    Args:
        size: number of items, > 0 (`TypeError` if not an int, `ValueError` if not positive).
        shuffle: permute each epoch; otherwise 0, 1, 2, ... over and over.
        seed: of the permutations, equal on all ranks. None: the ranks agree on a random one, which
            is a collective call.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler(size=) expects an int, got {type(size).__name__}")
        if size <= 0:
            raise ValueError(f"TrainingSampler(size=) expects a positive int, got {size}")
        self._size = size
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        # Asked here, because loader workers belong to no process group.
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._stream(), self._rank, None, self._world_size)

    def _stream(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            if self._shuffle:
                yield from torch.randperm(self._size, generator=generator).tolist()
            else:
                yield from range(self._size)


class InferenceSampler(Sampler):
    """Every index once: contiguous shards in order of rank, the first `size % W` one longer."""

    def __init__(self, size: int):
        assert size > 0, f"InferenceSampler(size=) expects a positive int, got {size}"
        share, rest = divmod(size, comm.get_world_size())
        rank = comm.get_rank()
        begin = rank * share + min(rank, rest)
        self._local_indices = range(begin, begin + share + (rank < rest))

    def __iter__(self) -> Iterator[int]:
        return iter(self._local_indices)

    def __len__(self) -> int:
        return len(self._local_indices)
