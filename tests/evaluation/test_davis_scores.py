"""`score_davis` and its accumulator beyond the recorded numbers: cases by hand, rules, shards."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from vss2.errors import InputError
from vss2.evaluation import DAVISAccumulator, score_davis
from vss2.evaluation.contours import MaskContour, boundary_map, dilated, tolerance_radius
from vss2.evaluation.davis_scores import METRICS


def square(frames=5, shift=0, size=(20, 30), identity=1):
    """A 6x6 square that stands still, `shift` pixels to the right of column 10."""
    ids = np.zeros((frames, *size), np.uint8)
    ids[:, 8:14, 10 + shift : 16 + shift] = identity
    return ids


def sequences(seed=0, names=("b", "a", "c")):
    rng = np.random.default_rng(seed)
    made = []
    for i, name in enumerate(names):
        shape = (4 + i, 30 + i, 41)
        small = rng.integers(0, 4, (shape[0], 6, 7)).astype(np.uint8)
        truth = np.stack(
            [cv2.resize(s, shape[:0:-1], interpolation=cv2.INTER_NEAREST) for s in small]
        )
        truth[0, :3, :9] = np.repeat([[1], [2], [3]], 9, axis=1)
        made.append((name, truth, np.where(rng.random(shape) < 0.1, 0, truth).astype(np.uint8)))
    return made


def whole_frame_f(truth, result, radius):
    """F by its definition: whole frames, dilation by a disk."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x * x + y * y <= radius * radius).astype(np.uint8)
    g, s = boundary_map(truth), boundary_map(result)
    if not g.any() or not s.any():
        return float(g.any() == s.any())
    precision = (s & cv2.dilate(g, disk)).sum() / s.sum()
    recall = (g & cv2.dilate(s, disk)).sum() / g.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_a_case_by_hand():
    scores = score_davis([("one", square(), square(shift=2))])
    assert scores["J-Mean"] == 24 / 48
    assert scores["J-Recall"] == 0.0  # strictly above one half
    assert scores["J-Decay"] == 0.0
    # Contours are rings of 24 pixels. Within a pixel of the other ring are 6 of the upper side, 6
    # of the lower one and 2 of a side that lies in the other square.
    assert scores["F-Mean"] == pytest.approx(14 / 24, abs=1e-15)
    assert scores["J&F-Mean"] == (scores["J-Mean"] + scores["F-Mean"]) / 2
    assert list(scores)[:7] == list(METRICS)
    assert list(scores["per_object"]) == ["one_1"]
    assert scores["per_sequence"]["one"]["J-Mean"] == 0.5


def test_boxes_give_the_numbers_of_whole_frames():
    rng = np.random.default_rng(3)
    for _ in range(60):
        height, width = rng.integers(2, 40, 2)
        radius = int(rng.integers(1, 9))
        masks = []
        for _ in range(2):
            mask = np.zeros((height, width), np.uint8)
            top, left = rng.integers(0, height), rng.integers(0, width)
            mask[
                top : top + rng.integers(0, height + 1), left : left + rng.integers(0, width + 1)
            ] = 1
            masks.append(mask & (rng.random(mask.shape) < rng.choice([0.5, 1.0])))
        truth, result = (MaskContour(mask, radius) for mask in masks)
        union = (masks[0] | masks[1]).sum()
        expected = (masks[0] & masks[1]).sum() / union if union else 1.0
        assert truth.region_similarity(result) == expected
        assert truth.contour_accuracy(result) == whole_frame_f(*masks, radius)


@pytest.mark.parametrize("radius", [1, 2, 5, 9, 18, 31])
def test_rectangles_dilate_as_the_disk(radius):
    points = (np.random.default_rng(radius).random((70, 90)) < 0.003).astype(np.uint8)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x * x + y * y <= radius * radius).astype(np.uint8)
    np.testing.assert_array_equal(dilated(points, radius), cv2.dilate(points, disk))


def test_first_and_last_frame_do_not_count():
    truth, result = square(), square()
    result[[0, -1]] = 9  # no object of the sequence
    assert score_davis([("one", truth, result)])["J&F-Mean"] == 1.0


def test_void_is_background_or_does_not_count():
    truth = square()
    truth[:, 14:18, 10:16] = 255
    result = np.where(truth == 255, 1, truth)
    assert score_davis([("one", truth, result)])["J-Mean"] == 36 / 60
    assert score_davis([("one", truth, result)], "unsupervised")["J-Mean"] == 1.0


def test_objects_are_those_of_the_first_annotation():
    truth = square()
    truth[1:, 0:3, 0:3] = 2  # appears later: not evaluated
    scores = score_davis([("one", truth, square())])
    assert scores["J&F-Mean"] == 1.0
    assert list(scores["per_object"]) == ["one_1"]
    with pytest.raises(InputError, match=r"'one', frame 1 holds id 2.*ids 1\.\.1"):
        score_davis([("one", truth, truth)])


def test_an_object_that_is_not_there():
    truth, result = square(frames=6), square(frames=6)
    truth[3:] = 0  # disappears
    assert score_davis([("one", truth, result)])["per_object"]["one_1"]["J-Mean"] == 0.5
    assert score_davis([("one", truth, truth)])["J&F-Mean"] == 1.0
    never = score_davis([("one", square(), np.zeros_like(square()))])
    assert never["J&F-Mean"] == 0.0


def test_davis_2016_takes_every_id_for_one_object():
    truth, result = square(identity=255), square(identity=3)
    result[:, 8:10] = np.where(result[:, 8:10], 7, 0)
    assert score_davis([("one", truth, result)], "davis-2016")["J&F-Mean"] == 1.0


def test_proposals_are_matched():
    truth = np.maximum(square(), square(shift=8, identity=2))
    result = np.where(truth == 1, 6, np.where(truth == 2, 4, 0)).astype(np.uint8)
    result[:, 0:2, 0:2] = 1  # unmatched, costs nothing
    scores = score_davis([("one", truth, result)], "unsupervised")
    assert scores["J&F-Mean"] == 1.0
    assert list(scores["per_object"]) == ["one_1", "one_2"]
    few = score_davis([("one", truth, np.where(truth == 1, 1, 0).astype(np.uint8))], "unsupervised")
    assert few["J-Mean"] == 0.5
    with pytest.raises(InputError, match="frame 0 holds id 21; at most 20"):
        score_davis([("one", truth, np.where(truth == 1, 21, 0))], "unsupervised")


@pytest.mark.parametrize("task", ["semi-supervised", "unsupervised", "davis-2016"])
def test_workers_and_shards_give_every_bit(task):
    made = sequences()
    alone = score_davis(made, task)
    assert score_davis(iter(made), task, num_workers=2) == alone
    merged = DAVISAccumulator(task)
    for part in (made[1:], made[:1]):
        shard = DAVISAccumulator(task)
        frames = max(len(truth) for _, truth, _ in part)
        for t in range(frames):  # sequences in turns
            for name, truth, result in part:
                if t < len(truth):
                    shard.add(name, truth[t], result[t])
        for name, *_ in part:
            shard.finish(name)
        merged.merge(shard.state_dict())
    together = merged.scores()
    assert {key: together[key] for key in METRICS} == {key: alone[key] for key in METRICS}
    assert together["per_object"] == alone["per_object"]
    assert merged.num_frames == sum(len(t) - 2 * (task != "unsupervised") for _, t, _ in made)


def test_caller_may_reuse_its_buffers_and_give_tensors():
    name, truth, result = sequences()[0]
    expected = score_davis([(name, truth, result)])
    buffers = torch.zeros(truth.shape[1:], dtype=torch.int64), np.zeros_like(result[0])
    scores = DAVISAccumulator()
    for g, s in zip(truth, result, strict=True):
        buffers[0].copy_(torch.from_numpy(g))
        buffers[1][:] = s
        scores.add(name, *buffers)
    scores.finish(name)
    assert scores.scores() == expected


def test_frames_are_asked_for_one_by_one():
    class Folder:
        def __init__(self, maps):
            self.maps, self.asked = maps, []

        def __len__(self):
            return len(self.maps)

        def __getitem__(self, index):
            self.asked.append(index)
            return self.maps[index]

    name, truth, result = sequences()[0]
    lazy = Folder(truth), Folder(result)
    assert score_davis([(name, *lazy)]) == score_davis([(name, truth, result)])
    assert lazy[0].asked == list(range(len(truth)))


def test_bad_input_names_what_was_found():
    truth = square()
    with pytest.raises(InputError, match=r"one of semi-supervised, .*got 'vos'"):
        score_davis([("one", truth, truth)], "vos")
    with pytest.raises(InputError, match="nothing to score"):
        score_davis([])
    with pytest.raises(InputError, match="'one' has 5 annotations and 4 results"):
        score_davis([("one", truth, truth[1:])])
    with pytest.raises(InputError, match="'one' has no frames"):
        score_davis([("one", truth[:0], truth[:0])])
    with pytest.raises(InputError, match=r"'one' has 2 annotated frames.*at least 3"):
        score_davis([("one", truth[:2], truth[:2])])
    with pytest.raises(InputError, match="first annotation of sequence 'one' holds no object"):
        score_davis([("one", truth * 0, truth)])
    with pytest.raises(InputError, match="'one', frame 0 has size 10x30, its annotation 20x30"):
        score_davis([("one", truth, truth[:, :10])])
    with pytest.raises(InputError, match="'one' was scored twice"):
        score_davis([("one", truth, truth)] * 2)
    with pytest.raises(InputError, match="'one' has no frames"):
        score_davis([("one", truth[:0], truth[:0])], num_workers=2)
    with pytest.raises(InputError, match="workers must be >= 0"):
        score_davis([("one", truth, truth)], num_workers=-1)
    with pytest.raises(InputError, match=r"shape \(20, 30, 3\)"):
        score_davis([("one", truth, np.stack([truth] * 3, axis=-1))])


def test_radius_of_the_published_sizes():
    assert [tolerance_radius(*size) for size in ((480, 854), (480, 910), (1080, 1920))] == [
        8,
        9,
        18,
    ]
