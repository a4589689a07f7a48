from __future__ import annotations

import numpy as np
import pytest

from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.build import get_video_dicts
from vss2.data.clip_sampling import LabelledClipSampler
from vss2.data.labels import LABEL_MAPPINGS, class_ids, reduce_labels, stored_labels, train_labels
from vss2.data.stray_labels import find_stray_labels, histogram
from vss2.errors import InputError
from vss2.evaluation import VSSEvaluator

RAW = np.arange(256, dtype=np.uint8)


def test_the_default_mapping_is_the_published_one():
    assert np.array_equal(class_ids(RAW), reduce_labels(RAW))
    assert np.array_equal(train_labels(RAW), train_labels(RAW, 124, "vspw"))
    assert train_labels(RAW)[[0, 1, 124, 125, 255]].tolist() == [255, 0, 123, 255, 255]


def test_class_ids_are_kept_as_they_are():
    assert np.array_equal(class_ids(RAW, "ids"), RAW)
    assert train_labels(RAW, 19, "ids")[[0, 18, 19, 255]].tolist() == [0, 18, 255, 255]


def test_cityscapes_maps_by_the_kind_of_file():
    full = class_ids(RAW, "cityscapes", "a_gtFine_labelIds.png")
    assert full[[7, 8, 11, 26, 33]].tolist() == [0, 1, 2, 13, 18]
    assert (full[[0, 1, 6, 9, 10, 14, 15, 16, 18, 29, 30, 34, 200, 255]] == 255).all()
    assert sorted(full[full != 255].tolist()) == list(range(19))
    assert np.array_equal(class_ids(RAW, "cityscapes", "a_gtFine_labelTrainIds.png"), RAW)


@pytest.mark.parametrize(
    ("mapping", "file", "valid"),
    [
        ("vspw", "", {*range(20), 255}),
        ("ids", "", {*range(19), 255}),
        ("cityscapes", "x_labelTrainIds.png", {*range(19), 255}),
        ("cityscapes", "x_labelIds.png", {*range(34), 255}),
    ],
)
def test_which_stored_values_are_labels(mapping, file, valid):
    assert set(np.flatnonzero(stored_labels(mapping, file).valid(19))) == valid
    label = np.array([[v for v in range(256) if v in valid]], np.uint8)
    assert find_stray_labels(label, 19, mapping, file) is None
    stray = find_stray_labels(RAW.reshape(16, 16), 19, mapping, file)
    assert set(stray.values) == set(range(256)) - valid
    assert stray.pixels == 256 - len(valid)


def test_unknown_mappings_are_named():
    assert "cityscapes" in LABEL_MAPPINGS
    with pytest.raises(InputError, match="Did you mean 'cityscapes'"):
        class_ids(RAW, "cityscape")


def test_histogram_counts_every_value():
    label = np.random.default_rng(0).integers(0, 256, (37, 53)).astype(np.uint8)
    assert np.array_equal(histogram(label), np.bincount(label.ravel(), minlength=256))
    sliced = label[:, ::2]
    assert np.array_equal(histogram(sliced), np.bincount(sliced.ravel(), minlength=256))


def test_the_metadata_of_a_set_reach_videos_and_evaluator():
    video = {"video_id": "v", "frames": [{"file_name": "f", "label_file": "l", "frame_index": 0}]}
    name = "mapped_set"
    DatasetCatalog.register(name, lambda: [video, video | {"label_mapping": "vspw"}])
    MetadataCatalog.get(name).set(stuff_classes=["a", "b"], label_mapping="ids")
    try:
        assert [v["label_mapping"] for v in get_video_dicts(name)] == ["ids", "vspw"]
        assert "label_mapping" not in video
        assert VSSEvaluator(name).label_mapping == "ids"
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_labelled_targets():
    sampler = LabelledClipSampler((-9, -6, -3, 0), reverse_prob=0.5)
    rng = np.random.default_rng(0)
    drawn = {tuple(sampler(30, rng, [19])) for _ in range(50)}
    assert drawn == {(10, 13, 16, 19), (28, 25, 22, 19)}
    # Where one direction has no references, the other one is taken.
    assert {tuple(sampler(30, rng, [25])) for _ in range(20)} == {(16, 19, 22, 25)}
    assert {tuple(sampler(30, rng, [2])) for _ in range(20)} == {(11, 8, 5, 2)}
    assert {sampler(30, rng, [5, 12, 19])[-1] for _ in range(60)} == {5, 12, 19}
    assert {sampler(10, rng)[-1] for _ in range(30)} == {0, 9}
    assert LabelledClipSampler((0,))(30, rng, [19]) == [19]
    with pytest.raises(InputError, match=r"labelled are \[7\]"):
        sampler(12, rng, [7])
    with pytest.raises(InputError, match="labelled are"):
        sampler(12, rng, [])
