from __future__ import annotations

import itertools
import logging
import pickle
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from tests.d2.engine_helpers import captured_logs, pretend_world
from vss2.d2 import BACKEND
from vss2.d2.data import (
    DatasetCatalog,
    DatasetFromList,
    InferenceSampler,
    MapDataset,
    ToIterableDataset,
    TrainingSampler,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from vss2.d2.utils import comm


class Numbers(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(range(self.count))


def take(loader, count):
    return list(itertools.islice(iter(loader), count))


# DatasetFromList


def test_serialised_items_are_fresh_and_equal():
    items = [{"a": [i] * i, "name": f"v{i}"} for i in range(5)]
    dataset = DatasetFromList(items, copy=False)
    assert len(dataset) == 5
    assert [dataset[i] for i in range(5)] == items
    dataset[3]["a"].append("changed")
    assert dataset[3] == items[3]
    assert dataset[3] is not items[3]


@pytest.mark.parametrize("copy", [True, False])
def test_unserialised_items_are_copied_if_asked(copy):
    items = [{"a": [1]}]
    dataset = DatasetFromList(items, copy=copy, serialize=False)
    assert dataset[0] == items[0]
    assert (dataset[0] is items[0]) == (not copy)
    dataset[0]["a"].append(2)
    assert items[0]["a"] == ([1] if copy else [1, 2])


def test_serialize_may_be_another_store():
    dataset = DatasetFromList([1, 2, 3], serialize=lambda items: [10 * i for i in items])
    assert len(dataset) == 3
    assert [dataset[i] for i in range(3)] == [10, 20, 30]


def test_serialised_list_survives_pickling():
    dataset = pickle.loads(pickle.dumps(DatasetFromList([{"i": i} for i in range(4)])))
    assert [dataset[i]["i"] for i in range(4)] == [0, 1, 2, 3]


# MapDataset


def test_map_dataset_maps():
    dataset = MapDataset(DatasetFromList([1, 2, 3]), lambda x: x * x)
    assert len(dataset) == 3
    assert [dataset[i] for i in range(3)] == [1, 4, 9]


def test_map_dataset_replaces_a_refused_item_by_another():
    dataset = MapDataset(list(range(10)), lambda x: None if x == 4 else x)
    seen = {dataset[4] for _ in range(20)}
    assert 4 not in seen
    assert seen <= set(range(10))
    assert dataset[5] == 5


def test_map_dataset_warns_from_the_third_refusal():
    tried = []

    def mapper(x):
        tried.append(x)
        return x if len(tried) > 5 else None

    dataset = MapDataset(list(range(20)), mapper)
    with captured_logs(logging.WARNING) as records:
        dataset[0]
    assert len(tried) == len(set(tried)) == 6
    assert [r.levelno for r in records] == [logging.WARNING] * 3


def test_map_dataset_in_which_nothing_serves():
    dataset = MapDataset([1, 2, 3], lambda x: None)
    with captured_logs(logging.WARNING), pytest.raises(ValueError):
        dataset[0]


def test_map_dataset_of_an_iterable_skips_refused_items():
    dataset = MapDataset(Numbers(6), lambda x: x if x % 2 else None)
    assert isinstance(dataset, IterableDataset)
    assert list(dataset) == [1, 3, 5]


def test_map_dataset_with_a_lambda_can_be_pickled():
    offset = 3
    dataset = pickle.loads(pickle.dumps(MapDataset([1, 2], lambda x: x + offset)))
    assert [dataset[0], dataset[1]] == [4, 5]


# ToIterableDataset


def test_to_iterable_reads_in_sampler_order():
    dataset = ToIterableDataset([10, 11, 12, 13], InferenceSampler(4))
    assert list(dataset) == [10, 11, 12, 13]
    assert len(dataset) == 4


@pytest.mark.parametrize("chunk", [1, 3])
def test_to_iterable_workers_share_the_stream_by_chunks(chunk):
    dataset = ToIterableDataset(list(range(12)), InferenceSampler(12), shard_chunk_size=chunk)
    loader = DataLoader(dataset, batch_size=chunk, num_workers=2, collate_fn=list)
    assert list(loader) == [list(range(k, k + chunk)) for k in range(0, 12, chunk)]


def test_to_iterable_without_sharding_repeats_the_stream():
    dataset = ToIterableDataset([5, 6], InferenceSampler(2), shard_sampler=False)
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    assert sorted(loader) == [5, 5, 6, 6]


def test_to_iterable_checks_its_arguments():
    with pytest.raises(AssertionError):
        ToIterableDataset(Numbers(3), InferenceSampler(3))
    with pytest.raises(AssertionError):
        ToIterableDataset([1, 2, 3], [0, 1, 2])


# build_batch_data_loader


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(workers):
    def loader(num_workers):
        return build_batch_data_loader(
            list(range(10)), TrainingSampler(10, seed=5), 4, num_workers=num_workers
        )

    expected = take(TrainingSampler(10, seed=5), 28)
    batches = take(loader(0), 7)
    assert batches == [expected[k : k + 4] for k in range(0, 28, 4)]
    assert take(loader(workers), 7) == batches


@pytest.mark.parametrize(("drop_last", "count"), [(True, 2), (False, 3)])
def test_drop_last(drop_last, count):
    loader = build_batch_data_loader(
        list(range(5)), InferenceSampler(5), 2, drop_last=drop_last, num_workers=0
    )
    assert list(loader) == [[0, 1], [2, 3], [4]][:count]


def test_batch_is_a_list_unless_collated():
    items = [{"i": 0}, {"i": 1}]
    plain = build_batch_data_loader(items, InferenceSampler(2), 2)
    assert next(iter(plain)) == items
    collated = build_batch_data_loader(
        items, InferenceSampler(2), 2, collate_fn=lambda batch: sum(d["i"] for d in batch)
    )
    assert next(iter(collated)) == 1


def test_total_batch_is_shared_by_the_ranks(monkeypatch):
    pretend_world(monkeypatch, comm, 1, 2)
    sampler = TrainingSampler(6, shuffle=False, seed=0)
    loader = build_batch_data_loader(list(range(6)), sampler, 4)
    assert take(loader, 3) == [[1, 3], [5, 1], [3, 5]]
    with pytest.raises(AssertionError):
        build_batch_data_loader([0], sampler, 5)


def test_batch_size_is_given_once():
    sampler = InferenceSampler(4)
    with pytest.raises(ValueError):
        build_batch_data_loader([0] * 4, sampler, 4, single_gpu_batch_size=2)
    with pytest.raises(AssertionError):
        build_batch_data_loader([0] * 4, sampler, 0)
    loader = build_batch_data_loader(list(range(4)), sampler, 0, single_gpu_batch_size=2)
    assert list(loader) == [[0, 1], [2, 3]]


def test_iterable_dataset_takes_no_sampler():
    loader = build_batch_data_loader(Numbers(4), None, 2)
    assert list(loader) == [[0, 1], [2, 3]]
    with pytest.raises(AssertionError):
        build_batch_data_loader(Numbers(4), InferenceSampler(4), 2)


def draws(item):
    return item, random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seed_seeds_python_numpy_and_torch_of_every_worker():
    def run(seed):
        dataset = MapDataset(list(range(8)), draws)
        loader = build_batch_data_loader(dataset, InferenceSampler(8), 2, num_workers=2, seed=seed)
        return [item for batch in loader for item in batch]

    first = run(13)
    assert run(13) == first
    other = run(14)
    for kind in (1, 2, 3):
        assert len({item[kind] for item in first}) == 8, "workers must not repeat each other"
        assert {item[kind] for item in first}.isdisjoint(item[kind] for item in other)


def test_loader_arguments_are_passed_on():
    loader = build_batch_data_loader(
        [0, 1], InferenceSampler(2), 1, num_workers=1, prefetch_factor=3, timeout=50
    )
    assert (loader.prefetch_factor, loader.timeout, loader.pin_memory) == (3, 50, False)


# build_detection_train_loader


def test_train_loader_samples_a_list_without_end(monkeypatch):
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 9)
    loader = build_detection_train_loader(
        [{"i": i} for i in range(3)],
        mapper=lambda d: d["i"] + 100,
        total_batch_size=2,
        aspect_ratio_grouping=False,
    )
    stream = [i + 100 for i in take(TrainingSampler(3, seed=9), 8)]
    assert take(loader, 4) == [stream[k : k + 2] for k in range(0, 8, 2)]


def test_train_loader_with_own_sampler_and_no_mapper():
    loader = build_detection_train_loader(
        [{"i": i} for i in range(4)],
        mapper=None,
        sampler=InferenceSampler(4),
        total_batch_size=2,
        aspect_ratio_grouping=False,
    )
    assert list(loader) == [[{"i": 0}, {"i": 1}], [{"i": 2}, {"i": 3}]]


def test_train_loader_of_an_iterable():
    def build(sampler=None):
        return build_detection_train_loader(
            Numbers(4),
            mapper=lambda x: -x,
            sampler=sampler,
            total_batch_size=2,
            aspect_ratio_grouping=False,
        )

    assert list(build()) == [[0, -1], [-2, -3]]
    with pytest.raises(AssertionError):
        build(InferenceSampler(4))


def test_train_loader_wants_a_sampler_object():
    with pytest.raises(AssertionError):
        build_detection_train_loader(
            [{}], mapper=None, sampler=[0], total_batch_size=1, aspect_ratio_grouping=False
        )


def test_aspect_ratio_grouping_is_the_default_and_not_embedded():
    items = [{"width": 4 + i % 2 * 4, "height": 6} for i in range(8)]
    arguments = {"mapper": None, "sampler": TrainingSampler(8, seed=0), "total_batch_size": 2}
    if BACKEND == "embedded":
        with pytest.raises(NotImplementedError, match="aspect_ratio_grouping=False"):
            build_detection_train_loader(items, **arguments)
        with pytest.raises(NotImplementedError, match="aspect_ratio_grouping=False"):
            build_batch_data_loader(items, InferenceSampler(8), 2, aspect_ratio_grouping=True)
    else:
        for batch in take(build_detection_train_loader(items, **arguments), 6):
            assert len({item["width"] for item in batch}) == 1


# build_detection_test_loader


@pytest.mark.parametrize("workers", [0, 2])
def test_test_loader_visits_every_item_once_in_order(workers):
    loader = build_detection_test_loader(
        [{"i": i} for i in range(5)],
        mapper=lambda d: d["i"],
        batch_size=2,
        num_workers=workers,
    )
    assert len(loader) == 3
    assert list(loader) == [[0, 1], [2, 3], [4]]


def test_test_loader_defaults_and_shards(monkeypatch):
    pretend_world(monkeypatch, comm, 1, 2)
    loader = build_detection_test_loader([{"i": i} for i in range(5)], mapper=lambda d: d["i"])
    assert list(loader) == [[3], [4]]


def test_test_loader_with_sampler_and_collate():
    loader = build_detection_test_loader(
        [3, 4, 5], mapper=None, sampler=[2, 0], batch_size=2, collate_fn=tuple
    )
    assert list(loader) == [(5, 3)]
    with pytest.raises(AssertionError):
        build_detection_test_loader(Numbers(3), mapper=None, sampler=InferenceSampler(3))
    assert list(build_detection_test_loader(Numbers(2), mapper=None)) == [[0], [1]]


# get_detection_dataset_dicts


@pytest.fixture
def named_sets():
    sets = {
        "contract_data_a": [{"video_id": "a"}],
        "contract_data_b": [{"video_id": "b"}, {"video_id": "c"}],
        "contract_data_empty": [],
        "contract_data_boxes": [
            {"id": 0, "annotations": []},
            {"id": 1, "annotations": [{"iscrowd": 1}]},
            {"id": 2, "annotations": [{"iscrowd": 1}, {}]},
        ],
    }
    for name, items in sets.items():
        DatasetCatalog.register(name, lambda items=items: items)
    yield sets
    for name in sets:
        DatasetCatalog.remove(name)


def test_dataset_dicts_concatenates(named_sets):
    assert get_detection_dataset_dicts("contract_data_a") == [{"video_id": "a"}]
    both = get_detection_dataset_dicts(["contract_data_b", "contract_data_a"])
    assert [d["video_id"] for d in both] == ["b", "c", "a"]


def test_dataset_dicts_must_have_items(named_sets):
    with pytest.raises(AssertionError, match="contract_data_empty"):
        get_detection_dataset_dicts(["contract_data_a", "contract_data_empty"])
    with pytest.raises(AssertionError):
        get_detection_dataset_dicts([])
    with pytest.raises(KeyError, match="contract_data_no"):
        get_detection_dataset_dicts("contract_data_no")


def test_dataset_dicts_filters_only_annotations(named_sets):
    def ids(**kwargs):
        return [d["id"] for d in get_detection_dataset_dicts("contract_data_boxes", **kwargs)]

    assert ids() == [2]
    assert ids(filter_empty=False) == [0, 1, 2]
