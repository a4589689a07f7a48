"""VSPW protocol against numbers recorded from VSS-CFFM (a3e4595): sampling, labels, test resize."""

from __future__ import annotations

import numpy as np
import pytest

from vss2.data.clip_sampling import OffsetClipSampler
from vss2.data.labels import reduce_labels, train_labels
from vss2.data.transforms import TestResize
from vss2.testing.fixtures import image_clip, load_fixture

SIZES = [(120, 211), (480, 853), (90, 220)]


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("vspw_protocol")


class LegacyGenerator:
    """NumPy's legacy stream, which the recorded draws come from, behind a Generator's methods."""

    def __init__(self, seed: int) -> None:
        self.state = np.random.RandomState(seed)

    def random(self) -> float:
        return 1.0  # the recorded draws had no reversal, hence no draw for it

    def integers(self, low: int, high: int) -> int:
        return int(self.state.randint(low, high))


def test_training_draws_equal_the_published_ones(fixture):
    sampler = OffsetClipSampler(offsets=[*fixture[0]["config"]["dilation"], 0])
    rng = LegacyGenerator(0)
    assert [sampler(25, rng) for _ in range(12)] == fixture[0]["train_frames"]["draws"]


def test_all_published_clips_and_no_others_can_be_drawn(fixture):
    sampler, rng = OffsetClipSampler(), np.random.default_rng(0)
    drawn = {tuple(sampler(25, rng)) for _ in range(2000)}
    assert drawn == {tuple(clip) for clip in fixture[0]["train_frames"]["all_possible"]}


def test_label_mapping_is_exact(fixture):
    raw = np.arange(256, dtype=np.uint8)
    expected = fixture[1]["label_map"]
    np.testing.assert_array_equal(reduce_labels(raw), expected)
    np.testing.assert_array_equal(train_labels(raw), np.where(expected < 124, expected, 255))


@pytest.mark.parametrize("case", range(3))
def test_resized_frames_within_one_level(fixture, case):
    description, arrays = fixture
    config = description["config"]
    frame = image_clip(1, *SIZES[case], seed=case)[0]
    resized = TestResize(config["img_scale"], config["size_divisor"])(frame)
    assert resized.shape == ((352 if case == 2 else 480), 864, 3)
    difference = resized[::16, ::16].astype(int) - arrays[f"resized{case}.slice"]
    assert np.abs(difference).max() <= 1
    mean, std, largest = arrays[f"resized{case}.stats"]
    assert abs(resized.mean() - mean) < 0.05
    assert abs(resized.std() - std) < 0.05
    assert abs(int(resized.max()) - largest) <= 1
    normalised = (resized.astype(np.float32) - config["mean"]) / config["std"]
    difference = normalised[::32, ::32] - arrays[f"normalised{case}.slice"]
    assert np.abs(difference).max() <= 1.01 / min(config["std"])
