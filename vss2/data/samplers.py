"""Samplers: the resumable stream of training positions, and whole videos for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from vss2.d2.utils import comm


class PositionSampler(Sampler[tuple[int, int]]):
    """Endless stream of (position, index): shuffled passes over `size` items, one after another.

    One generator seeded with `seed` makes all permutations. Rank r of W takes the positions
    start + r, start + r + W, ... (the order of detectron2's TrainingSampler).

    Args:
        size: number of items.
        seed: of the permutations; the same on all ranks.
        start: first position, i.e. how many the ranks together have used before.
        rank, world_size: this process.
    """

    def __init__(
        self, size: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.size = size
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world_size = world_size

    def draw(self, generator: torch.Generator) -> list[int]:
        """The items of the next pass, in order."""
        return torch.randperm(self.size, generator=generator).tolist()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed)
        position, first = self.start + self.rank, 0
        order = self.draw(generator)
        while True:
            while position >= first + len(order):
                first += len(order)
                order = self.draw(generator)
            yield position, order[position - first]
            position += self.world_size


def shard_videos(frame_counts: Sequence[int], world_size: int) -> list[list[int]]:
    """Share whole videos among ranks, balanced by their number of frames.

    The longest video goes first, each to the rank with the fewest frames so far; the result is
    the same in every process.

    Args:
        frame_counts: frames of each video.
        world_size: number of ranks.

    Returns:
        For each rank its video indices, ascending; a rank may have none.
    """
    shards: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for index in sorted(range(len(frame_counts)), key=lambda i: (-frame_counts[i], i)):
        rank = loads.index(min(loads))
        shards[rank].append(index)
        loads[rank] += frame_counts[index]
    return [sorted(shard) for shard in shards]


class VideoInferenceSampler(Sampler[int]):
    """Frame indices of this rank's videos: videos whole, frames in order, each exactly once.

    Index i counts the frames of all videos one after the other.

    Args:
        frame_counts: frames of each video.
        rank, world_size: default: those of this process.
    """

    shard_videos = staticmethod(shard_videos)

    def __init__(
        self,
        frame_counts: Sequence[int],
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        rank = comm.get_rank() if rank is None else rank
        world_size = comm.get_world_size() if world_size is None else world_size
        starts = np.cumsum([0, *frame_counts]).tolist()
        self.indices = [
            index
            for video in shard_videos(frame_counts, world_size)[rank]
            for index in range(starts[video], starts[video + 1])
        ]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
