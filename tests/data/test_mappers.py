from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vss2.data.clip_sampling import OffsetClipSampler
from vss2.data.datasets.vspw import load_vspw
from vss2.data.image_io import read_image, read_label, write_image, write_label
from vss2.data.labels import train_labels
from vss2.data.loaders import frame_dicts
from vss2.data.mappers import DATASET_MAPPER_REGISTRY, ClipTrainMapper, FrameTestMapper
from vss2.data.transforms import (
    PhotoMetricDistortion,
    RandomCrop,
    RandomFlip,
    RandomResize,
    TestResize,
)
from vss2.errors import InputError, InputFileError


def make_mapper(augmentations=(), pad_size=(32, 48), offsets=(-9, -6, -3, 0), **kwargs):
    return ClipTrainMapper(OffsetClipSampler(offsets), augmentations, pad_size, **kwargs)


def published(size=(32, 32)):
    return [
        RandomResize((40, 24), (0.5, 2.0)),
        RandomCrop(size),
        RandomFlip(),
        PhotoMetricDistortion(),
    ]


def test_sample_without_augmentation_is_what_the_files_say(make_vspw):
    video = load_vspw(make_vspw({"a": 12}), "train")[0]
    sample = make_mapper()(video, np.random.default_rng(1))
    assert sample["frames"].shape == (4, 3, 32, 48)
    assert sample["frames"].dtype == torch.uint8
    assert sample["sem_seg"].shape == (4, 32, 48)
    assert sample["sem_seg"].dtype == torch.int64
    assert sample["labelled"].tolist() == [True] * 4
    assert sample["image_size"] == (24, 40)
    assert sample["video_id"] == "a"
    steps = np.diff(sample["frame_indices"])
    assert set(steps.tolist()) in ({3}, {-3})
    for t, index in enumerate(sample["frame_indices"]):
        frame = video["frames"][index]
        image = read_image(frame["file_name"]).transpose(2, 0, 1)
        np.testing.assert_array_equal(sample["frames"][t, :, :24, :40], image)
        labels = train_labels(read_label(frame["label_file"]))
        np.testing.assert_array_equal(sample["sem_seg"][t, :24, :40], labels)
    assert not sample["frames"][:, :, 24:].any()
    assert not sample["frames"][:, :, :, 40:].any()
    assert (sample["sem_seg"][:, 24:] == 255).all()
    assert (sample["sem_seg"][:, :, 40:] == 255).all()


def test_a_fixed_generator_fixes_the_sample(make_vspw):
    video = load_vspw(make_vspw({"a": 14}), "train")[0]
    mapper = make_mapper(published(), pad_size=(32, 32))
    first, again, other = (mapper(video, np.random.default_rng(s)) for s in (5, 5, 6))
    assert torch.equal(first["frames"], again["frames"])
    assert torch.equal(first["sem_seg"], again["sem_seg"])
    assert first["frame_indices"] == again["frame_indices"]
    assert not torch.equal(first["frames"], other["frames"])


def test_labels_stay_aligned_with_their_pixels(make_vspw):
    """The red channel of the files is the raw label: after crop and flip it still is."""
    video = load_vspw(make_vspw({"a": 14}), "train")[0]
    mapper = make_mapper([RandomCrop((16, 24)), RandomFlip()], pad_size=(16, 24))
    for seed in range(10):
        sample = mapper(video, np.random.default_rng(seed))
        expected = train_labels(sample["frames"][:, 0].numpy())
        np.testing.assert_array_equal(sample["sem_seg"].numpy(), expected)
        positions = sample["frames"][:, 1].flatten(1)
        assert [set(row.tolist()) for row in positions] == [{i} for i in sample["frame_indices"]]


def test_stray_ids_are_void_in_training(make_vspw):
    video = load_vspw(make_vspw({"a": 1}), "train")[0]
    raw = np.tile(np.array([1, 124, 125, 200, 254], np.uint8), (24, 8))
    write_label(video["frames"][0]["label_file"], raw)
    sample = make_mapper(offsets=[0])(video, np.random.default_rng(0))
    assert sample["sem_seg"][0, 0, :5].tolist() == [0, 123, 255, 255, 255]
    few = make_mapper(offsets=[0], num_classes=100)(video, np.random.default_rng(0))
    assert few["sem_seg"][0, 0, :5].tolist() == [0, 255, 255, 255, 255]


def test_unlabelled_frames_are_marked_and_void(make_vspw):
    video = load_vspw(make_vspw({"a": 10}), "train")[0]
    for index in (0, 3, 9):
        video["frames"][index]["label_file"] = None
    sample = make_mapper()(video, np.random.default_rng(0))
    labelled = [index == 6 for index in sample["frame_indices"]]
    assert sample["labelled"].tolist() == labelled
    for t, has_labels in enumerate(labelled):
        assert bool((sample["sem_seg"][t] == 255).all()) is not has_labels


def test_a_clip_without_any_label_is_an_error(make_vspw):
    video = load_vspw(make_vspw({"bare": 1}, masks=False), "train")[0]
    with pytest.raises(InputError, match="'bare' has no label file"):
        make_mapper(offsets=[0])(video, np.random.default_rng(0))


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (31, 47)])
def test_odd_sizes_pass_the_published_augmentations(make_vspw, size):
    video = load_vspw(make_vspw({"a": 10}, size=size), "train")[0]
    for seed in range(5):
        sample = make_mapper(published(), pad_size=(32, 32))(video, np.random.default_rng(seed))
        assert sample["frames"].shape == (4, 3, 32, 32)
        assert max(sample["image_size"]) <= 32


def test_a_clip_larger_than_the_padding_is_an_error(make_vspw):
    video = load_vspw(make_vspw({"a": 1}), "train")[0]
    with pytest.raises(InputError, match="24x40, larger than the pad_size 16x16"):
        make_mapper(pad_size=(16, 16), offsets=[0])(video, np.random.default_rng(0))


def test_sizes_that_disagree_name_both_files(make_vspw):
    video = load_vspw(make_vspw({"a": 10}), "train")[0]
    frame = video["frames"][3]
    write_label(frame["label_file"], np.ones((24, 41), np.uint8))
    with pytest.raises(InputError) as caught:
        make_mapper()(video, np.random.default_rng(0))
    message = str(caught.value)
    assert frame["file_name"] in message
    assert frame["label_file"] in message
    assert "24x41" in message
    write_image(frame["file_name"], np.zeros((24, 41, 3), np.uint8))
    with pytest.raises(InputError, match="Frames of one video differ"):
        make_mapper()(video, np.random.default_rng(0))


def test_corrupt_frames_and_labels_are_named(make_vspw):
    videos = load_vspw(make_vspw({"a": 1, "b": 1}), "train")
    for video, key in zip(videos, ("file_name", "label_file"), strict=True):
        path = Path(video["frames"][0][key])
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(InputFileError) as caught:
            make_mapper(offsets=[0])(video, np.random.default_rng(0))
        assert str(path) in str(caught.value)


def test_evaluation_item(make_vspw):
    video = load_vspw(make_vspw({"a": 3}), "train")[0]
    mapper = FrameTestMapper(TestResize((60, 40), 32))
    items = [mapper(frame) for frame in frame_dicts(video)]
    assert [item["frame_index"] for item in items] == [0, 1, 2]
    assert [item["first_frame"] for item in items] == [True, False, False]
    assert [item["last_frame"] for item in items] == [False, False, True]
    for item, frame in zip(items, video["frames"], strict=True):
        assert item["frame"].shape == (3, 64, 64)
        assert item["frame"].dtype == torch.uint8
        assert (item["height"], item["width"]) == (24, 40)
        assert item["file_name"] == frame["file_name"]
        assert item["label_file"] == frame["label_file"]
        assert item["video_id"] == "a"
    stored = FrameTestMapper()(frame_dicts(video)[0])
    assert stored["frame"].shape == (3, 24, 40)


def test_a_one_frame_video_is_first_and_last(make_vspw):
    video = load_vspw(make_vspw({"a": 1}), "train")[0]
    (frame,) = frame_dicts(video)
    assert frame["first_frame"]
    assert frame["last_frame"]


def test_mappers_are_registered():
    assert DATASET_MAPPER_REGISTRY.get("ClipTrainMapper") is ClipTrainMapper
    assert DATASET_MAPPER_REGISTRY.get("FrameTestMapper") is FrameTestMapper


def test_pad_size_is_checked():
    with pytest.raises(InputError, match="pad_size"):
        make_mapper(pad_size=(480,))
