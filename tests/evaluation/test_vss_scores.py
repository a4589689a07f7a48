"""`score_vss` and `VSSAccumulator`: hand-computed cases, windows by definition, merging, errors."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch

from vss2.errors import InputError
from vss2.evaluation import VSSAccumulator, score_vss

KEYS = {
    *("mIoU", "mAcc", "aAcc", "mDice", "mIoU_e", "mAcc_e", "aAcc_e", "fwIoU"),
    *("VC8", "VC16", "windows8", "windows16", "undefined8", "undefined16"),
    *("consistency8", "consistency16", "IoU", "per_video"),
}


def ids(*rows):
    return np.array(rows, np.uint8)


def random_video(rng, frames, num_classes=5, height=6, width=7, stray=True):
    """Raw labels that hold still for a while, and predictions that are mostly right."""
    raw = np.empty((frames, height, width), np.uint8)
    values = [0, 255, *range(1, num_classes + 1), *([num_classes + 1, 200] if stray else [])]
    raw[0] = rng.choice(values, (height, width))
    prediction = np.empty_like(raw)
    guess = rng.integers(0, num_classes, (height, width))
    for t in range(frames):
        if t:
            moved = rng.random((height, width)) < 0.06
            raw[t] = np.where(moved, rng.choice(values, (height, width)), raw[t - 1])
        wrong = rng.random((height, width)) < 0.06
        guess = np.where(wrong, rng.integers(0, num_classes, (height, width)), guess)
        known = (raw[t] >= 1) & (raw[t] <= num_classes) & (rng.random((height, width)) < 0.9)
        prediction[t] = np.where(known, raw[t] - 1, guess)
    return raw, prediction


def reduced(raw):
    out = raw.astype(np.int64) - 1
    out[(raw == 0) | (raw == 255)] = 255
    return out


def vc_by_definition(label, prediction, n, windows):
    """VC of each window from its n frames, as the definition reads."""
    ratios = []
    for i in range(windows):
        fixed = (label[i : i + n] == label[i]).all(axis=0)
        steady = (prediction[i : i + n] == prediction[i]).all(axis=0)
        ratios.append((fixed & steady).sum() / fixed.sum() if fixed.any() else math.nan)
    return ratios


def consistency_by_definition(label, prediction, n, num_classes):
    ratios = []
    for i in range(len(label) - n + 1):
        fixed = (label[i : i + n] == label[i]).all(axis=0) & (label[i] < num_classes)
        right = (prediction[i : i + n] == label[i : i + n]).all(axis=0)
        ratios.append((fixed & right).sum() / fixed.sum() if fixed.any() else math.nan)
    return ratios


def assert_equal_scores(a, b):
    """Equal in every bit, nan included."""
    assert a.keys() == b.keys()
    for key, value in a.items():
        if key == "per_video":
            assert list(value) == list(b[key])
            for name, scores in value.items():
                assert_equal_scores(scores, b[key][name])
        else:
            np.testing.assert_array_equal(value, b[key], err_msg=key)


def test_frame_metrics_by_hand():
    """Pixels (label, prediction): twice 0,0; 0,1; 1,1; 1,2; void,2.

    I = 2 1 0, L = 3 2 0, P = 2 2 1: IoU 2/3, 1/3, 0.
    """
    raw = ids([1, 1, 1], [2, 2, 0])[None]
    prediction = ids([0, 0, 1], [1, 2, 2])[None]
    scores = score_vss([("a", raw, prediction)], 4)
    np.testing.assert_allclose(scores["IoU"], [2 / 3, 1 / 3, 0, math.nan], atol=1e-15)
    assert scores["mIoU"] == pytest.approx(1 / 3, abs=1e-15)
    assert scores["mIoU_e"] == pytest.approx(1 / 2, abs=1e-15)  # class 2 has no label
    assert scores["mAcc"] == scores["mAcc_e"] == pytest.approx((2 / 3 + 1 / 2) / 2, abs=1e-15)
    assert scores["aAcc"] == scores["aAcc_e"] == pytest.approx(3 / 5, abs=1e-15)
    assert scores["mDice"] == pytest.approx((4 / 5 + 1 / 2 + 0) / 3, abs=1e-15)
    assert scores["fwIoU"] == pytest.approx(3 / 5 * 2 / 3 + 2 / 5 * 1 / 3, abs=1e-15)


def test_keys_and_types():
    scores = score_vss([("a", np.ones((18, 2, 2), np.uint8), np.zeros((18, 2, 2), np.uint8))], 3)
    assert scores.keys() == KEYS
    assert scores["IoU"].shape == (3,)
    assert type(scores["windows8"]) is int
    assert type(scores["VC8"]) is float
    assert scores["per_video"]["a"].keys() == (KEYS - {"IoU", "per_video"}) | {"frames"}
    assert (scores["windows8"], scores["windows16"]) == (10, 2)


def test_a_label_one_past_the_classes_counts_as_the_last_class_in_the_table_only():
    """Labels (after reduction) 0, 2 = K, 3 with K = 2; predictions 0, 1, 1."""
    scores = score_vss([("a", ids([1, 3, 4])[None], ids([0, 1, 1])[None])], 2)
    # Class 1: intersect 0, label area 1 (from id 2), prediction area 2: union 3.
    np.testing.assert_array_equal(scores["IoU"], [1.0, 0.0])
    assert scores["aAcc"] == 0.5
    assert scores["mDice"] == 0.5
    assert (scores["mIoU_e"], scores["aAcc_e"], scores["fwIoU"]) == (1.0, 1.0, 1.0)


def test_ids_as_given_without_reduction():
    label = ids([0, 1, 255])[None]
    scores = score_vss([("a", label, ids([0, 0, 1])[None])], 2, reduce=False)
    np.testing.assert_array_equal(scores["IoU"], [0.5, 0.0])
    assert scores["aAcc"] == 0.5


def test_a_constant_wrong_answer_is_consistent_as_published_and_scores_0_by_label():
    raw = np.full((20, 3, 4), 2, np.uint8)
    scores = score_vss([("a", raw, np.zeros_like(raw))], 3)
    assert (scores["VC8"], scores["VC16"]) == (1.0, 1.0)
    assert (scores["consistency8"], scores["consistency16"]) == (0.0, 0.0)
    right = score_vss([("a", raw, np.ones_like(raw))], 3)
    assert (right["VC8"], right["consistency8"], right["consistency16"]) == (1.0, 1.0, 1.0)


def test_label_aware_consistency_by_hand():
    """Nine frames of four pixels: two windows of 8. Pixel 0 right, pixel 1 wrong in frame 0, pixel
    2 void, pixel 3 changes its label in the last frame (followed by the prediction).

    Window 0: 3 constant pixels, 2 right throughout. Window 1: 2 constant, both right. VC leaves
    out window 1, counts void, and finds pixel 1 unsteady: 3 of 4.
    """
    raw = np.tile(ids([1, 1, 0, 1]), (9, 1, 1))
    raw[8, 0, 3] = 2
    prediction = np.where(raw == 2, 1, 0).astype(np.uint8)
    prediction[0, 0, 1] = 1
    scores = score_vss([("a", raw, prediction)], 2, min_frames=1)
    assert scores["consistency8"] == pytest.approx((2 / 3 + 1) / 2, abs=1e-15)
    assert math.isnan(scores["consistency16"])
    assert scores["VC8"] == 0.75
    assert (scores["windows8"], scores["undefined8"], scores["windows16"]) == (1, 0, 0)


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("drop_last_window", [True, False])
@pytest.mark.parametrize("min_frames", [1, 17])
def test_windows_equal_their_definition(reduce, drop_last_window, min_frames):
    rng = np.random.default_rng(7)
    clips = {f"v{n}": random_video(rng, n) for n in (1, 7, 8, 9, 15, 16, 17, 33)}
    never_constant = np.tile(ids([1, 2]), (20, 1, 1))
    never_constant[::2] = 3
    clips["blinking"] = (never_constant, np.zeros_like(never_constant))
    settings = {"reduce": reduce, "min_frames": min_frames, "drop_last_window": drop_last_window}
    scores = score_vss([(k, *v) for k, v in clips.items()], 5, **settings)
    for n in (8, 16):
        vc, consistency = [], []
        for raw, prediction in clips.values():
            label = reduced(raw) if reduce else raw
            windows = len(raw) - n + (0 if drop_last_window else 1)
            windows = 0 if len(raw) < min_frames else windows
            vc += vc_by_definition(label, prediction, n, windows)
            consistency += consistency_by_definition(label, prediction, n, 5)
        assert scores[f"VC{n}"] == pytest.approx(np.nanmean(vc), abs=1e-14)
        assert scores[f"windows{n}"] == len(vc)
        assert scores[f"undefined{n}"] == np.isnan(vc).sum()
        assert scores[f"consistency{n}"] == pytest.approx(np.nanmean(consistency), abs=1e-14)


def test_runs_longer_than_a_byte_do_not_wrap():
    raw = np.ones((300, 1, 2), np.uint8)
    scores = score_vss([("a", raw, np.zeros_like(raw))], 2)
    assert (scores["VC16"], scores["consistency16"], scores["windows16"]) == (1.0, 1.0, 284)


def test_short_videos_count_in_frame_metrics_and_not_in_vc():
    raw = np.ones((16, 2, 2), np.uint8)
    scores = score_vss([("a", raw, np.zeros_like(raw))], 2)
    assert scores["mIoU"] == 1.0
    assert math.isnan(scores["VC8"])
    assert scores["windows8"] == 0
    assert scores["consistency16"] == 1.0
    assert score_vss([("a", raw, np.zeros_like(raw))], 2, min_frames=1)["windows8"] == 8


def test_all_void_is_nan_not_an_error():
    raw = np.zeros((18, 2, 3), np.uint8)
    raw[5:] = 255
    with np.errstate(all="raise"):
        scores = score_vss([("a", raw, np.zeros_like(raw))], 3)
    for key in ("mIoU", "mAcc", "aAcc", "mDice", "mIoU_e", "mAcc_e", "aAcc_e", "consistency8"):
        assert math.isnan(scores[key]), key
    assert scores["fwIoU"] == 0.0  # the published sum over no classes
    assert scores["VC8"] == 1.0  # void counts as a label there
    assert np.isnan(scores["IoU"]).all()


def test_numpy_torch_and_other_integer_types_score_alike():
    raw, prediction = random_video(np.random.default_rng(3), 18)
    expected = score_vss([("a", raw, prediction)], 5)
    for kind in (np.int64, np.int32, np.uint16):
        assert_equal_scores(
            score_vss([("a", raw.astype(kind), prediction.astype(kind))], 5), expected
        )
    tensors = torch.from_numpy(raw), torch.from_numpy(prediction).long()
    assert_equal_scores(score_vss([("a", *tensors)], 5), expected)


def test_merging_shards_gives_the_bits_of_one_pass():
    rng = np.random.default_rng(11)
    clips = [(f"v{i:02d}", *random_video(rng, int(rng.integers(1, 26)))) for i in range(12)]
    expected = score_vss(clips, 5)
    for _ in range(5):
        order = rng.permutation(len(clips))
        ranks = [VSSAccumulator(5) for _ in range(4)]
        for k in order:
            name, raw, prediction = clips[k]
            rank = ranks[rng.integers(0, 3)]  # the last rank stays empty
            for i in range(len(raw)):
                rank.add(name, raw[i], prediction[i], i)
            rank.finish_video(name)
        total = VSSAccumulator(5)
        for rank in rng.permutation(4):
            total.merge(pickle.loads(pickle.dumps(ranks[rank].state_dict())))
        assert total.num_frames == sum(len(raw) for _, raw, _ in clips)
        assert_equal_scores(total.scores(), expected)
    assert_equal_scores(score_vss(clips[::-1], 5), expected)


def test_interleaved_videos_and_reused_buffers():
    rng = np.random.default_rng(5)
    clips = {name: random_video(rng, 20) for name in ("a", "b")}
    scores = VSSAccumulator(5)
    label, guess = np.empty((2, 6, 7), np.uint8)
    for i in range(20):
        for name, (raw, prediction) in clips.items():
            label[:], guess[:] = raw[i], prediction[i]
            scores.add(name, label, guess, i)
    assert scores.open_videos == ["a", "b"]
    scores.finish()
    assert_equal_scores(scores.scores(), score_vss([(k, *v) for k, v in clips.items()], 5))


def test_skipped_frames_are_no_part_of_the_sequence():
    raw, prediction = random_video(np.random.default_rng(9), 24)
    kept = [i for i in range(24) if i not in (0, 5, 23)]
    scores = VSSAccumulator(5)
    for i in range(24):
        if i in kept:
            scores.add("a", raw[i], prediction[i], i)
        else:
            scores.skip("a", i)
    scores.finish_video("a", num_frames=24)
    assert_equal_scores(scores.scores(), score_vss([("a", raw[kept], prediction[kept])], 5))


ONE = np.ones((2, 3), np.uint8)
ZERO = np.zeros((2, 3), np.uint8)


def wrong_calls():
    stray = ZERO.copy()
    stray[1, 1] = 4
    yield "id 4;.*0..3", lambda s: s.add("clip", ONE, stray, 1)
    yield "holds id -1", lambda s: s.add("clip", ONE, ZERO.astype(int) - 1, 1)
    yield "holds id 300", lambda s: s.add("clip", ONE.astype(int) * 300, ZERO, 1)
    yield "2x3.*2x2|2x2.*2x3", lambda s: s.add("clip", ONE[:, :2], ZERO, 1)
    yield "has size 1x3.*2x3", lambda s: s.add("clip", ONE[:1], ZERO[:1], 1)
    yield "dtype float32", lambda s: s.add("clip", ONE, ZERO.astype(np.float32), 1)
    yield r"shape \(2, 3, 1\)", lambda s: s.add("clip", ONE[..., None], ZERO, 1)
    yield "frame 0 came twice", lambda s: s.add("clip", ONE, ZERO, 0)
    yield "frame 3 came before frame 1", lambda s: s.add("clip", ONE, ZERO, 3)
    yield "frame 3 came before frame 1", lambda s: s.skip("clip", 3)
    yield "frame 1 is missing; 1 of 3", lambda s: s.finish_video("clip", 3)


@pytest.mark.parametrize(("message", "call"), list(wrong_calls()))
def test_bad_frames_are_named(message, call):
    scores = VSSAccumulator(4)
    scores.add("clip", ONE, ZERO, 0)
    with pytest.raises(InputError, match=message) as error:
        call(scores)
    assert "ideo 'clip'" in str(error.value)


def test_videos_that_come_again_or_never():
    scores = VSSAccumulator(4)
    with pytest.raises(InputError, match="'x' cannot be finished"):
        scores.finish_video("x")
    with pytest.raises(InputError, match="nothing to score"):
        scores.scores()
    scores.add("x", ONE, ZERO)
    with pytest.raises(RuntimeError, match=r"still open: \['x'\]"):
        scores.state_dict()
    scores.finish()
    with pytest.raises(InputError, match="Video 'x' was already complete"):
        scores.add("x", ONE, ZERO, 0)
    with pytest.raises(InputError, match="Video 'x' was scored twice"):
        scores.merge(scores.state_dict())
    with pytest.raises(InputError, match="cannot be merged"):
        VSSAccumulator(4, reduce=False).merge(scores.state_dict())


def test_bad_input_of_score_vss():
    with pytest.raises(InputError, match="nothing to score"):
        score_vss([], 4)
    with pytest.raises(InputError, match="'a' has no frames"):
        score_vss([("a", ONE[None][:0], ZERO[None][:0])], 4)
    with pytest.raises(InputError, match="'a' has 1 label maps and 2 predictions"):
        score_vss([("a", ONE[None], np.stack([ZERO, ZERO]))], 4)
    with pytest.raises(InputError, match="'a' was already complete"):
        score_vss([("a", ONE[None], ZERO[None])] * 2, 4)
    for number in (0, 256):
        with pytest.raises(InputError, match=f"1..255, got {number}"):
            score_vss([("a", ONE[None], ZERO[None])], number)
