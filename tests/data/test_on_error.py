"""Faulty data in training: an error by default, or passed over, counted and listed."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from vss2.d2.data import DatasetCatalog
from vss2.data.build import build_train_loader
from vss2.data.clip_sampling import OffsetClipSampler
from vss2.data.datasets.vspw import load_vspw
from vss2.data.image_io import read_label, write_label
from vss2.data.mappers import ClipTrainMapper
from vss2.data.problems import collected_problems, problem
from vss2.errors import InputError, InputFileError

VIDEOS = {"a": 4, "b": 4, "c": 4}


def loader_of(dataset, num_workers=0, on_error="skip", stray_labels="void"):
    mapper = ClipTrainMapper(
        OffsetClipSampler((0,)), [], pad_size=(24, 40), num_classes=9, stray_labels=stray_labels
    )
    return build_train_loader(
        dataset=dataset,
        mapper=mapper,
        total_batch_size=2,
        num_workers=num_workers,
        seed=3,
        on_error=on_error,
    )


def contents(loader, batches=8):
    return [
        (s["video_id"], tuple(s["frame_indices"]), s["frames"].numpy().tobytes())
        for batch in islice(loader, batches)
        for s in batch
    ]


@pytest.fixture
def videos(make_vspw):
    """Three videos; all frames of 'b' and one of 'c' are cut off."""
    videos = load_vspw(make_vspw(VIDEOS), "train")
    for frame in [*videos[1]["frames"], videos[2]["frames"][0]]:
        path = Path(frame["file_name"])
        path.write_bytes(path.read_bytes()[:-20])
    return videos


def test_the_default_stops_at_the_file(videos):
    with pytest.raises(InputFileError, match="cut off"):
        contents(loader_of(videos, on_error="error"))
    with pytest.raises(
        InputError, match=r"on_error is 'error' or 'skip', got 'skipp'.*mean 'skip'"
    ):
        loader_of(videos, on_error="skipp")


def test_faults_are_passed_over_counted_and_listed(videos, caplog):
    loader = loader_of(videos)
    with caplog.at_level(logging.WARNING, logger="vss2.data.loaders"):
        drawn = contents(loader, 12)
    assert len(drawn) == 24
    assert {name for name, _, _ in drawn} == {"a", "c"}
    assert ("c", (0,)) not in {(name, frames) for name, frames, _ in drawn}
    assert {fault.video_id for fault in loader.skipped} == {"b", "c"}
    assert all("cut off" in fault.reason for fault in loader.skipped)
    assert loader.skipped.total() >= 8
    # Each fault is logged once, however often it is met.
    assert len(caplog.records) == len(loader.skipped) < loader.skipped.total()
    assert "Passed over a clip of video 'b'" in caplog.text


def test_what_is_drawn_instead_does_not_depend_on_workers_or_resumes(videos):
    loaders = [loader_of(videos, n) for n in (0, 2)]
    first, second = (contents(loader) for loader in loaders)
    assert first == second
    assert loaders[0].skipped == loaders[1].skipped
    resumed = loader_of(videos)
    resumed.load_state_dict({"seed": 3, "batches": 3})
    assert contents(resumed, 5) == first[6:]


def test_clean_data_are_the_same_with_either_setting(make_vspw):
    videos = load_vspw(make_vspw(VIDEOS), "train")
    assert contents(loader_of(videos)) == contents(loader_of(videos, on_error="error"))


def test_nothing_but_faults_is_an_error(videos):
    with pytest.raises(InputError, match=r"20 clips in a row could not be used .* cut off"):
        contents(loader_of(videos[1:2]))


def test_videos_that_cannot_be_listed_are_left_out(make_vspw, caplog):
    root = make_vspw({**VIDEOS, "d": 2, "e": 0})
    (root / "train.txt").write_text("a\nb\nc\nd\ne\nnowhere\na\n")
    next((root / "data" / "d" / "mask").iterdir()).unlink()
    name = "on_error_set"
    DatasetCatalog.register(name, lambda: load_vspw(root, "train"))
    try:
        with pytest.raises(InputError, match="names 'a' twice"):
            loader_of(name, on_error="error")
        with caplog.at_level(logging.WARNING, logger="vss2.data.build"):
            loader = loader_of(name)
    finally:
        DatasetCatalog.remove(name)
    assert [video["video_id"] for video in loader.videos] == ["a", "b", "c"]
    assert "4 faults in the list of training videos" in caplog.text
    for text in ("'a' twice", "'nowhere'", "has no mask", "'e' is empty"):
        assert text in caplog.text
    assert len(contents(loader, 2)) == 4


def test_problems_are_raised_unless_they_are_collected():
    with pytest.raises(InputError, match="first"):
        problem(InputError("first"))
    with collected_problems() as problems:
        problem(InputError("second"))
        problem(InputError("third"))
    assert [str(error) for error in problems] == ["second", "third"]
    with pytest.raises(InputError, match="fourth"):
        problem(InputError("fourth"))


def test_stray_labels_are_void_or_a_fault(make_vspw):
    videos = load_vspw(make_vspw(VIDEOS), "train")
    for frame in videos[0]["frames"]:
        label = read_label(frame["label_file"])
        label[:4] = 10
        write_label(frame["label_file"], label)
    batch = next(iter(loader_of(videos[:1], on_error="error")))
    assert (batch[0]["sem_seg"][0, :4] == 255).all()
    with pytest.raises(InputError, match=r"is wrong: .*off by one"):
        contents(loader_of(videos, on_error="error", stray_labels="error"))
    loader = loader_of(videos, stray_labels="error")
    assert {name for name, _, _ in contents(loader)} == {"b", "c"}
    assert "off by one" in next(iter(loader.skipped)).reason
    with pytest.raises(InputError, match="stray_labels"):
        loader_of(videos, stray_labels="keep")
    assert np.unique(read_label(videos[1]["frames"][0]["label_file"])).max() == 255
