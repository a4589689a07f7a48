from __future__ import annotations

import numpy as np
import pytest
from omegaconf import OmegaConf

from vss2.data.clip_sampling import OffsetClipSampler
from vss2.errors import InputError


def test_same_generator_same_clips():
    sampler = OffsetClipSampler()
    draws = [[sampler(40, rng) for _ in range(20)] for rng in map(np.random.default_rng, [3, 3, 4])]
    assert draws[0] == draws[1] != draws[2]


def test_targets_are_uniform_and_half_of_the_clips_reversed():
    sampler, rng = OffsetClipSampler(offsets=[-2, 0]), np.random.default_rng(0)
    clips = [tuple(sampler(5, rng)) for _ in range(6000)]
    counts = {clip: clips.count(clip) for clip in set(clips)}
    assert set(counts) == {(0, 2), (1, 3), (2, 4), (4, 2), (3, 1), (2, 0)}
    assert all(abs(count - 1000) < 150 for count in counts.values())


def test_shortest_video_holds_one_clip_each_way():
    sampler, rng = OffsetClipSampler(), np.random.default_rng(0)
    assert sampler.min_frames == 10
    clips = {tuple(sampler(10, rng)) for _ in range(50)}
    assert clips == {(0, 3, 6, 9), (9, 6, 3, 0)}
    with pytest.raises(InputError, match="needs 10 frames, the video has 9"):
        sampler(9, rng)


def test_single_images():
    sampler, rng = OffsetClipSampler(offsets=[0]), np.random.default_rng(0)
    assert sampler.min_frames == 1
    assert {tuple(sampler(3, rng)) for _ in range(60)} == {(0,), (1,), (2,)}


def test_lists_from_a_config_are_taken():
    sampler = OffsetClipSampler(offsets=OmegaConf.create([-3, 0]), reverse_prob=0)
    assert sampler(4, np.random.default_rng(0)) == [0, 3]
    assert type(sampler.offsets) is tuple


@pytest.mark.parametrize("offsets", [[], [-3], [0, -3], [-3, -3, 0], [-1, 0, 1]])
def test_offsets_must_ascend_to_the_target(offsets):
    with pytest.raises(InputError, match="ascend and end with 0"):
        OffsetClipSampler(offsets=offsets)


def test_probability_is_checked():
    with pytest.raises(InputError, match="reverse_prob"):
        OffsetClipSampler(reverse_prob=1.5)
