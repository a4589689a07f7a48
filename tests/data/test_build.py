from __future__ import annotations

import logging
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from vss2.data.build import build_test_loader, build_train_loader
from vss2.data.clip_sampling import OffsetClipSampler
from vss2.data.datasets.vspw import load_vspw
from vss2.data.loaders import MAX_TRIES
from vss2.data.mappers import ClipTrainMapper, FrameTestMapper
from vss2.data.transforms import PhotoMetricDistortion, RandomCrop, RandomFlip, RandomResize
from vss2.errors import InputError, InputFileError

VIDEOS = {"a": 12, "b": 10, "c": 11, "d": 13, "e": 10}


def train_loader(videos, num_workers=0, seed=7, batch=2):
    mapper = ClipTrainMapper(
        OffsetClipSampler(),
        [RandomResize((40, 24)), RandomCrop((24, 24)), RandomFlip(), PhotoMetricDistortion()],
        pad_size=(24, 24),
    )
    return build_train_loader(
        dataset=videos, mapper=mapper, total_batch_size=batch, num_workers=num_workers, seed=seed
    )


def signature(batches):
    """Everything in some batches that must be reproducible."""
    return [
        (s["video_id"], tuple(s["frame_indices"]), s["image_size"], s["frames"].numpy().tobytes())
        for batch in batches
        for s in batch
    ]


@pytest.fixture
def videos(make_vspw):
    return load_vspw(make_vspw(VIDEOS), "train")


def test_content_does_not_depend_on_the_number_of_workers(videos):
    results = [signature(islice(train_loader(videos, num_workers=n), 7)) for n in (0, 1, 2)]
    assert len(results[0]) == 14
    assert results[0] == results[1] == results[2]
    names = [entry[0] for entry in results[0]]
    assert sorted(names[:5]) == sorted(names[5:10]) == sorted(VIDEOS)


def test_content_depends_on_the_seed(videos):
    first, second = (signature(islice(train_loader(videos, seed=s), 3)) for s in (1, 2))
    assert first != second
    drawn = {train_loader(videos, seed=None).seed for _ in range(3)}
    assert len(drawn) == 3
    assert train_loader(videos, seed=-1).seed >= 0


def test_the_same_video_is_augmented_anew_in_every_pass(videos):
    samples = signature(islice(train_loader(videos[:1], batch=1), 4))
    assert len({sample[3] for sample in samples}) == 4


@pytest.mark.parametrize("workers", [(0, 0), (2, 2), (2, 0), (0, 2)])
def test_a_resumed_loader_continues_where_the_trainer_was(videos, workers):
    whole = signature(islice(train_loader(videos), 8))
    first = train_loader(videos, num_workers=workers[0])
    iterator = iter(first)
    head = signature(next(iterator) for _ in range(3))
    state = first.state_dict()
    assert state == {"seed": 7, "batches": 3}  # what workers prefetched does not count
    resumed = train_loader(videos, num_workers=workers[1], seed=99)
    resumed.load_state_dict(state)
    assert head + signature(islice(resumed, 5)) == whole
    assert resumed.state_dict() == {"seed": 7, "batches": 8}


def test_a_fresh_iterator_continues(videos):
    loader = train_loader(videos)
    parts = signature(islice(loader, 3)) + signature(islice(loader, 2))
    assert parts == signature(islice(train_loader(videos), 5))
    assert loader.batches == 5


def test_incomplete_states_are_refused(videos):
    with pytest.raises(InputError, match="batches"):
        train_loader(videos).load_state_dict({"seed": 1})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_states_are_left_alone(videos, num_workers):
    test = build_test_loader(
        dataset=videos, mapper=FrameTestMapper(), batch_size=8, num_workers=num_workers
    )
    train = train_loader(videos, num_workers)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    list(islice(train, 3))
    list(islice(test, 3))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


def test_ranks_take_turns_in_the_stream(videos, monkeypatch):
    """Two ranks with half the batch each see what one process sees."""
    whole = signature(islice(train_loader(videos, batch=4), 3))
    monkeypatch.setattr("vss2.d2.utils.comm.get_world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr("vss2.d2.utils.comm.get_rank", lambda rank=rank: rank)
        parts.append(signature(islice(train_loader(videos, batch=4), 3)))
    assert [len(part) for part in parts] == [6, 6]
    assert [entry for pair in zip(*parts, strict=True) for entry in pair] == whole


def test_short_videos_are_left_out_and_named(make_vspw, caplog):
    videos = load_vspw(make_vspw({"long": 10, "short": 9, "one": 1}), "train")
    with caplog.at_level(logging.WARNING, logger="vss2.data.build"):
        loader = train_loader(videos, batch=1)
    assert "2 of 3 videos have fewer than 10 frames" in caplog.text
    assert "short, one" in caplog.text
    assert {entry[0] for entry in signature(islice(loader, 4))} == {"long"}


def test_no_video_long_enough_is_an_error(make_vspw):
    videos = load_vspw(make_vspw({"short": 9, "one": 1}), "train")
    with pytest.raises(InputError, match="needs 10 frames, the longest of 2 videos has 9"):
        train_loader(videos)


def test_training_without_label_files_is_an_error(make_vspw):
    videos = load_vspw(make_vspw({"a": 10}, masks=False), "train")
    with pytest.raises(InputError, match="no label files"):
        train_loader(videos)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_corrupt_frame_is_named_in_one_line(videos, num_workers):
    for video in videos:
        for frame in video["frames"]:
            path = Path(frame["file_name"])
            path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputFileError, match="cut off") as caught:
        next(iter(train_loader(videos, num_workers)))
    assert str(caught.value).startswith("The image ")
    assert "\n" not in str(caught.value)
    loader = build_test_loader(dataset=videos, mapper=FrameTestMapper(), num_workers=num_workers)
    with pytest.raises(InputFileError, match="cut off") as caught:
        next(iter(loader))
    assert "\n" not in str(caught.value)


class Picky:
    """A mapper that refuses most draws, as third-party mappers may."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, video, rng):
        value = rng.random()
        return None if value < self.share else (video["video_id"], value)


def test_refused_videos_are_drawn_again_and_stay_reproducible(videos):
    loaders = [
        build_train_loader(
            dataset=videos, mapper=Picky(0.7), total_batch_size=2, num_workers=n, seed=1
        )
        for n in (0, 2)
    ]
    first, second = (list(islice(loader, 6)) for loader in loaders)
    assert first == second
    assert all(value >= 0.7 for batch in first for _, value in batch)
    refusing = build_train_loader(dataset=videos, mapper=Picky(2), total_batch_size=1, seed=1)
    with pytest.raises(InputError, match=f"refused {MAX_TRIES} videos"):
        next(iter(refusing))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_goes_through_all_frames_in_order(make_vspw, batch_size, num_workers):
    videos = load_vspw(make_vspw({"z": 4, "one": 1, "b": 5}, split="val"), "val")
    loader = build_test_loader(
        dataset=videos, mapper=FrameTestMapper(), batch_size=batch_size, num_workers=num_workers
    )
    batches = list(loader)
    assert len(loader) == len(batches) == -(-10 // batch_size)
    items = [item for batch in batches for item in batch]
    assert [(item["video_id"], item["frame_index"]) for item in items] == [
        (name, i) for name, count in (("z", 4), ("one", 1), ("b", 5)) for i in range(count)
    ]
    assert [item["video_id"] for item in items if item["first_frame"]] == ["z", "one", "b"]
    assert [item["frame_index"] for item in items if item["last_frame"]] == [3, 0, 4]


def test_evaluation_without_masks(make_vspw):
    videos = load_vspw(make_vspw({"a": 2}, split="test", masks=False), "test")
    items = [
        item
        for batch in build_test_loader(dataset=videos, mapper=FrameTestMapper())
        for item in batch
    ]
    assert [item["label_file"] for item in items] == [None, None]


def test_several_data_sets_by_name(make_vspw, monkeypatch):
    root = make_vspw({"a": 2}, split="val")
    make_vspw({"b": 3}, split="test")
    monkeypatch.setenv("VSS2_DATASETS", str(root.parent))
    loader = build_test_loader(dataset=["vspw_val", "vspw_test"], mapper=FrameTestMapper())
    assert [batch[0]["video_id"] for batch in loader] == ["a"] * 2 + ["b"] * 3
    with pytest.raises(InputError, match="'a' occurs twice"):
        build_test_loader(dataset=["vspw_val", "vspw_val"], mapper=FrameTestMapper())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "vspw_tarin"}, "vspw_train"),
        ({"dataset": []}, "No data set"),
        ({"dataset": [3]}, "list of names"),
        ({"dataset": [{"video_id": "x", "frames": []}]}, "'x' has no frames"),
        ({"total_batch_size": 0}, "total_batch_size"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_bad_arguments_of_the_train_loader(videos, change, message):
    arguments = {"dataset": videos, "mapper": Picky(0), "total_batch_size": 2} | change
    with pytest.raises(InputError, match=message):
        build_train_loader(**arguments)


def test_a_batch_that_ranks_cannot_share_is_refused(videos, monkeypatch):
    monkeypatch.setattr("vss2.d2.utils.comm.get_world_size", lambda: 3)
    with pytest.raises(InputError, match=r"multiple of the number of processes \(3\), got 4"):
        train_loader(videos, batch=4)


def test_bad_arguments_of_the_test_loader(videos):
    with pytest.raises(InputError, match="batch_size"):
        build_test_loader(dataset=videos, mapper=FrameTestMapper(), batch_size=0)
    with pytest.raises(InputError, match="num_workers"):
        build_test_loader(dataset=videos, mapper=FrameTestMapper(), num_workers=-2)
