from __future__ import annotations

import itertools

import pytest
import torch

from tests.d2.engine_helpers import pretend_world
from vss2.d2.data import InferenceSampler, TrainingSampler
from vss2.d2.utils import comm


def take(sampler, count):
    return list(itertools.islice(iter(sampler), count))


def permutations(size, seed, count):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randperm(size, generator=generator).tolist() for _ in range(count)]
    return list(itertools.chain.from_iterable(parts))


def test_training_sampler_is_one_permutation_after_the_other():
    assert take(TrainingSampler(7, seed=3), 21) == permutations(7, 3, 3)


def test_training_sampler_starts_over_with_each_iterator():
    sampler = TrainingSampler(7, seed=3)
    assert take(sampler, 10) == take(sampler, 10)


@pytest.mark.parametrize("world", [2, 3])
def test_training_sampler_ranks_share_the_concatenated_stream(monkeypatch, world):
    stream = permutations(5, 11, 6)
    for rank in range(world):
        pretend_world(monkeypatch, comm, rank, world)
        sampler = TrainingSampler(5, seed=11)
        pretend_world(monkeypatch, comm, 0, 1)  # as inside a loader worker
        assert take(sampler, 8) == stream[rank::world][:8]


def test_training_sampler_without_shuffle():
    assert take(TrainingSampler(3, shuffle=False, seed=0), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_training_sampler_has_no_length_and_no_state():
    sampler = TrainingSampler(3, seed=0)
    with pytest.raises(TypeError):
        len(sampler)
    assert not hasattr(sampler, "state_dict")


@pytest.mark.parametrize("size", [2.0, "3", None])
def test_training_sampler_size_must_be_an_int(size):
    with pytest.raises(TypeError):
        TrainingSampler(size, seed=0)


@pytest.mark.parametrize("size", [0, -1])
def test_training_sampler_size_must_be_positive(size):
    with pytest.raises(ValueError):
        TrainingSampler(size, seed=0)


def test_training_sampler_without_seed_asks_all_ranks(monkeypatch):
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 42)
    assert take(TrainingSampler(6), 12) == permutations(6, 42, 2)


@pytest.mark.parametrize(("size", "world"), [(10, 1), (10, 3), (9, 3), (2, 4), (1, 2)])
def test_inference_sampler_shards(monkeypatch, size, world):
    shards = []
    for rank in range(world):
        pretend_world(monkeypatch, comm, rank, world)
        sampler = InferenceSampler(size)
        shards.append(list(sampler))
        assert len(sampler) == len(shards[-1]) == size // world + (rank < size % world)
    assert list(itertools.chain.from_iterable(shards)) == list(range(size))


def test_inference_sampler_needs_items():
    with pytest.raises(AssertionError):
        InferenceSampler(0)
