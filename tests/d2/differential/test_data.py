from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from tests.d2.differential.engine_pair import both
from tests.d2.engine_helpers import captured_logs, pretend_world

pytest.importorskip("detectron2", reason="compares with a real detectron2, and none is installed")

PAIR = both()
REFERENCE, EMBEDDED = PAIR


def take(iterable, count):
    return list(itertools.islice(iter(iterable), count))


def error_of(function, *args, **kwargs):
    """Type of the exception that a call ends in, or None."""
    try:
        with captured_logs():
            function(*args, **kwargs)
    except Exception as error:
        return type(error)
    return None


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_training_streams(monkeypatch, world, shuffle):
    rng = random.Random(world)
    for _ in range(8):
        size, seed = rng.randint(1, 40), rng.randint(0, 2**31 - 1)
        for rank in range(world):
            streams = []
            for b in PAIR:
                pretend_world(monkeypatch, b.comm, rank, world)
                streams.append(take(b.samplers.TrainingSampler(size, shuffle, seed), 3 * size))
            assert streams[0] == streams[1]


@pytest.mark.parametrize("size", [3.0, None, "4", 0, -2])
def test_training_sampler_errors(size):
    kinds = [error_of(b.samplers.TrainingSampler, size, seed=0) for b in PAIR]
    assert kinds[0] is kinds[1] is not None


@pytest.mark.parametrize("world", [1, 2, 3])
def test_inference_shards(monkeypatch, world):
    for size in range(1, 14):
        for rank in range(world):
            shards = []
            for b in PAIR:
                pretend_world(monkeypatch, b.comm, rank, world)
                sampler = b.samplers.InferenceSampler(size)
                shards.append((list(sampler), len(sampler)))
            assert shards[0] == shards[1]


def test_random_seed_without_seed(monkeypatch):
    streams = []
    for b in PAIR:
        np.random.seed(5)
        streams.append(take(b.samplers.TrainingSampler(9), 30))
    assert streams[0] == streams[1]


@pytest.mark.parametrize("serialize", [True, False, list])
@pytest.mark.parametrize("copy", [True, False])
def test_dataset_from_list(serialize, copy):
    rows = []
    for b in PAIR:
        items = [{"i": i, "list": [i]} for i in range(4)]
        dataset = b.common.DatasetFromList(items, copy=copy, serialize=serialize)
        first = dataset[1]
        first["list"].append("changed")
        rows.append((len(dataset), [dataset[i] for i in range(4)], items, first is items[1]))
    assert rows[0] == rows[1]


def test_map_dataset_refusals():
    for refused in ({4}, {0, 1, 2}, set(range(1, 10))):
        values = []
        for b in PAIR:
            dataset = b.common.MapDataset(
                list(range(10)), lambda x, refused=refused: None if x in refused else 2 * x
            )
            with captured_logs() as records:
                values.append([dataset[i] for i in range(10)])
            assert all(v % 2 == 0 and v // 2 not in refused for v in values[-1])
            assert {r.levelname for r in records} <= {"WARNING"}
        kept = [i for i in range(10) if i not in refused]
        assert [values[0][i] for i in kept] == [values[1][i] for i in kept] == [2 * i for i in kept]


def test_map_dataset_without_any_item():
    kinds = [error_of(b.common.MapDataset([1, 2], lambda x: None).__getitem__, 0) for b in PAIR]
    assert kinds == [ValueError, ValueError]


class Numbers(IterableDataset):
    def __iter__(self):
        return iter(range(9))


def test_map_dataset_of_an_iterable():
    rows = [list(b.common.MapDataset(Numbers(), lambda x: x if x % 3 else None)) for b in PAIR]
    assert rows[0] == rows[1] == [1, 2, 4, 5, 7, 8]


def draws(item):
    return item, random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("drop_last", [True, False])
def test_batches_of_a_finite_sampler(workers, drop_last):
    rows = []
    for b in PAIR:
        loader = b.build.build_batch_data_loader(
            list(range(11)),
            b.samplers.InferenceSampler(11),
            3,
            num_workers=workers,
            drop_last=drop_last,
        )
        rows.append(list(loader))
    assert rows[0] == rows[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_and_randomness_of_seeded_workers(workers):
    rows = []
    for b in PAIR:
        loader = b.build.build_batch_data_loader(
            b.common.MapDataset(list(range(10)), draws),
            b.samplers.TrainingSampler(10, seed=3),
            2,
            num_workers=workers,
            seed=17,
        )
        rows.append(take(loader, 8))
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("world", "total", "single"),
    [(1, 4, None), (2, 4, None), (2, 0, 3), (3, 4, None), (1, 0, None)],
)
def test_batch_sizes(monkeypatch, world, total, single):
    outcomes = []
    for b in PAIR:
        pretend_world(monkeypatch, b.comm, 0, world)
        sampler = b.samplers.TrainingSampler(8, seed=1)

        def build(b=b, sampler=sampler):
            return b.build.build_batch_data_loader(
                list(range(8)), sampler, total, single_gpu_batch_size=single
            )

        kind = error_of(build)
        outcomes.append(kind or take(build(), 3))
    assert outcomes[0] == outcomes[1]


def test_both_batch_sizes():
    for b in PAIR:
        sampler = b.samplers.InferenceSampler(8)
        kind = error_of(
            b.build.build_batch_data_loader, [0] * 8, sampler, 4, single_gpu_batch_size=4
        )
        assert kind is ValueError


@pytest.mark.parametrize("workers", [0, 2])
def test_train_loader(workers):
    rows = []
    for b in PAIR:
        np.random.seed(11)
        loader = b.build.build_detection_train_loader(
            [{"i": i} for i in range(7)],
            mapper=lambda d: {"j": 10 * d["i"]},
            total_batch_size=3,
            aspect_ratio_grouping=False,
            num_workers=workers,
        )
        rows.append(take(loader, 9))
    assert rows[0] == rows[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_test_loader(monkeypatch, workers, batch_size):
    for rank, world in ((0, 1), (1, 2)):
        rows = []
        for b in PAIR:
            pretend_world(monkeypatch, b.comm, rank, world)
            loader = b.build.build_detection_test_loader(
                [{"i": i} for i in range(7)],
                mapper=lambda d: d["i"],
                batch_size=batch_size,
                num_workers=workers,
            )
            rows.append((len(loader), list(loader)))
        assert rows[0] == rows[1]


def test_dataset_dicts():
    boxes = [{"annotations": a, "i": i} for i, a in enumerate([[], [{"iscrowd": 1}], [{}]])]
    sets = {"diff_a": [{"v": 1}], "diff_b": [{"v": 2}], "diff_empty": [], "diff_boxes": boxes}
    questions = [
        ("diff_a", {}),
        (["diff_a", "diff_b"], {}),
        (["diff_a", "diff_empty"], {}),
        ([], {}),
        ("diff_unknown", {}),
        ("diff_boxes", {}),
        ("diff_boxes", {"filter_empty": False}),
    ]
    answers = []
    for b in PAIR:
        for name, items in sets.items():
            b.catalog.DatasetCatalog.register(name, lambda items=items: items)
        get = b.build.get_detection_dataset_dicts
        try:
            row = [error_of(get, names, **kw) or get(names, **kw) for names, kw in questions]
        finally:
            for name in sets:
                b.catalog.DatasetCatalog.remove(name)
        answers.append(row)
    assert answers[0] == answers[1]


def test_catalog_errors():
    rows = []
    for b in PAIR:
        catalog, metadata = b.catalog.DatasetCatalog, b.catalog.Metadata(name="m", a=1)
        rows.append(
            [
                error_of(catalog.get, "diff_unknown"),
                error_of(catalog.remove, "diff_unknown"),
                error_of(catalog.register, "diff_x", 3),
                error_of(b.catalog.MetadataCatalog.get, ""),
                error_of(setattr, metadata, "a", 2),
                error_of(setattr, metadata, "a", 1),
                error_of(getattr, metadata, "b"),
                metadata.get("b", 5),
                metadata.set(c=3).as_dict(),
            ]
        )
    assert rows[0] == rows[1]


def test_difference_aspect_ratio_grouping():
    kinds = [
        error_of(
            b.build.build_detection_train_loader,
            [{"width": 2, "height": 3}] * 4,
            mapper=None,
            sampler=b.samplers.InferenceSampler(4),
            total_batch_size=2,
        )
        for b in PAIR
    ]
    assert kinds == [None, NotImplementedError]
