from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from vss2.data.clip_sampling import SkipClipSampler, SkipCurriculum
from vss2.data.vos_sampling import ObjectSampler, renumbered
from vss2.errors import InputError
from vss2.testing.fixtures import load_fixture


def curriculum(skip: int = 5) -> SkipCurriculum:
    return SkipCurriculum([skip], [], max_iter=1, clips_per_iter=1)


@pytest.mark.parametrize(
    ("stage", "epoch_iters", "last"), [(1, 3748, 0.8), (2, 470, 0.9), (3, 470, 0.9)]
)
def test_gaps_are_those_of_the_published_runs(stage, epoch_iters, last):
    description, arrays = load_fixture("stcn_load")
    run = description["config"]["schedule"][f"stage_{stage}"]
    clips = run["batch_per_process"] * run["processes"]
    rule = SkipCurriculum(
        [5, 10, 15, 20, 25, 5], [0.1, 0.2, 0.3, 0.4, last], run["iterations"], clips, epoch_iters
    )
    assert set(rule.changes) == set(run["changes_at"]) - {0, *run["milestones"]}
    for row in arrays[f"schedule/stage_{stage}"]:
        iteration, gap, gap_youtube = int(row[0]), int(row[3]), int(row[4])
        for position in (iteration * clips, iteration * clips + clips - 1):
            assert rule(position) == gap
        if gap_youtube > 0:
            assert rule(iteration * clips) // 5 == gap_youtube


def test_curriculum_refuses_what_does_not_fit():
    with pytest.raises(InputError, match="one more than fractions"):
        SkipCurriculum([5, 10], [0.1, 0.2], 100, 1)
    with pytest.raises(InputError, match="must ascend"):
        SkipCurriculum([5, 10, 15], [0.3, 0.2], 100, 1)
    with pytest.raises(InputError, match="at least 1"):
        SkipCurriculum([5], [], 100, 0)


def test_frames_follow_the_published_rule():
    """Against the rule written out, for all draws of small videos."""
    sampler = SkipClipSampler(curriculum(3), reverse_prob=0.0)
    for n in (3, 4, 5, 9):
        reach = min(n, 3)
        expected = set()
        for s in range(n - reach + 1):
            for a in range(reach + 1):
                first = min(s + a + 1, n - reach, n - 1)
                for b in range(reach + 1):
                    expected.add((s, first, min(first + b + 1, n - reach // 2, n - 1)))
        rng = np.random.default_rng(0)
        drawn = {tuple(sampler(n, rng, 0)) for _ in range(800)}
        assert drawn == expected


def test_clips_run_both_ways_and_steps_divide_the_gap():
    sampler = SkipClipSampler(curriculum(25))
    rng = np.random.default_rng(0)
    clips = [sampler(60, rng, 0, frame_step=5) for _ in range(300)]
    forward = sum(clip[0] < clip[2] for clip in clips)
    assert 110 < forward < 190
    gaps = Counter(abs(b - a) for clip in clips for a, b in pairwise(clip))
    assert max(gaps) == 6  # one more than 25 // 5
    assert all(count > 30 for gap, count in gaps.items() if 1 <= gap <= 5)
    with pytest.raises(InputError, match="needs 3 frames"):
        sampler(2, rng, 0)


def masks_with(*areas: dict[int, int]) -> list[np.ndarray]:
    """Masks of 2000 pixels with so many pixels of each id."""
    result = []
    for area in areas:
        flat = np.repeat(list(area), list(area.values())).astype(np.uint8)
        result.append(np.pad(flat, (0, 2000 - len(flat))).reshape(40, 50))
    return result


def test_objects_are_drawn_from_the_first_frame_uniformly():
    masks = masks_with({3: 1, 5: 10, 9: 20}, {7: 500})
    rng = np.random.default_rng(0)
    drawn = [tuple(ObjectSampler(max_objects=2)(masks, rng)) for _ in range(600)]
    counts = Counter(drawn)
    assert set(counts) == {(a, b) for a in (3, 5, 9) for b in (3, 5, 9) if a != b}
    assert min(counts.values()) > 60
    assert ObjectSampler()(masks_with({}, {1: 5}), rng) == []
    assert ObjectSampler(max_objects=2)(masks_with({4: 7}), rng) == [4]


def test_areas_of_bl30k_leave_out_tiny_and_vanishing_objects():
    sampler = ObjectSampler(8, min_area=100, large_area=900, vanished_area=400)
    first = {1: 100, 2: 101, 3: 500, 4: 901}
    # Object 3 is of middle size and still large later; object 2 shrinks.
    masks = masks_with(first, {2: 10, 3: 390, 4: 50}, {2: 20, 3: 400, 4: 1000})
    assert sorted(sampler(masks, np.random.default_rng(0))) == [2, 4]


def test_chosen_ids_are_renumbered_in_order():
    masks = [np.array([[0, 3], [5, 9]], np.uint8)]
    assert renumbered(masks, [9, 3]).tolist() == [[[0, 2], [0, 1]]]
    assert renumbered(masks, []).max() == 0
