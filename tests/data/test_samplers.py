from __future__ import annotations

from itertools import islice

import pytest

from vss2.d2.data import TrainingSampler
from vss2.data.samplers import PositionSampler, VideoInferenceSampler, shard_videos


def test_every_pass_is_a_permutation_and_passes_differ():
    items = list(islice(PositionSampler(7, seed=3), 21))
    assert [position for position, _ in items] == list(range(21))
    passes = [tuple(index for _, index in items[start : start + 7]) for start in (0, 7, 14)]
    assert all(sorted(order) == list(range(7)) for order in passes)
    assert len(set(passes)) == 3


def test_order_is_that_of_the_training_sampler():
    ours = [index for _, index in islice(PositionSampler(11, seed=5), 40)]
    assert ours == list(islice(TrainingSampler(11, seed=5), 40))


@pytest.mark.parametrize("start", [0, 1, 6, 7, 8, 30])
def test_a_later_start_continues_the_same_stream(start):
    whole = list(islice(PositionSampler(7, seed=1), 50))
    assert list(islice(PositionSampler(7, seed=1, start=start), 20)) == whole[start : start + 20]


@pytest.mark.parametrize("start", [0, 6])
def test_ranks_share_the_stream_without_overlap(start):
    whole = list(islice(PositionSampler(5, seed=1, start=start), 24))
    for rank in range(3):
        sampler = PositionSampler(5, seed=1, start=start, rank=rank, world_size=3)
        assert list(islice(sampler, 8)) == whole[rank::3]


def test_seeds_give_different_orders():
    orders = {tuple(i for _, i in islice(PositionSampler(20, seed), 20)) for seed in range(5)}
    assert len(orders) == 5


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_videos_stay_whole_and_occur_once(world_size):
    counts = [5, 1, 9, 30, 2, 2, 7]
    seen = []
    starts = [0, 5, 6, 15, 45, 47, 49]
    for rank in range(world_size):
        sampler = VideoInferenceSampler(counts, rank, world_size)
        indices = list(sampler)
        assert len(indices) == len(sampler)
        assert indices == sorted(indices)
        videos = shard_videos(counts, world_size)[rank]
        assert indices == [starts[v] + k for v in videos for k in range(counts[v])]
        seen += indices
    assert sorted(seen) == list(range(sum(counts)))


def test_ranks_are_balanced_by_frames():
    assert VideoInferenceSampler.shard_videos([10] + [1] * 10, 2) == [[0], list(range(1, 11))]
    assert shard_videos([7, 5, 4, 4, 3, 1], 3) == [[0, 5], [1, 4], [2, 3]]  # 8 frames each


def test_a_rank_may_stay_empty():
    assert shard_videos([4, 4], 3) == [[0], [1], []]
    empty = VideoInferenceSampler([4, 4], rank=2, world_size=3)
    assert len(empty) == 0
    assert list(empty) == []


def test_default_rank_is_that_of_the_process():
    assert list(VideoInferenceSampler([2, 1])) == [0, 1, 2]
