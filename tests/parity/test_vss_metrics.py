"""Scores equal the published implementations' numbers on synthetic label maps.

Recorded from the evaluation code that the CFFM and MRCFA repositories share and from that of the
VSPW baseline: counts exact, ratios to 1e-12.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from vss2.evaluation import VSSAccumulator, score_vss
from vss2.evaluation.confusion import class_scores, frame_scores
from vss2.layers.label_maps import add_joint_histogram
from vss2.testing.fixtures import load_fixture

K = 124
DESCRIPTION, ARRAYS = load_fixture("vss_metrics")
RESULTS = DESCRIPTION["results"]
PROTOCOL = load_fixture("vspw_protocol")[1]


def number(value):
    return math.nan if value is None else value


def same(actual, expected):
    np.testing.assert_allclose(actual, number(expected), rtol=0, atol=1e-12, equal_nan=True)


def videos(names, min_frames=1):
    for name in names:
        if len(ARRAYS[f"gt/{name}"]) >= min_frames:
            yield name, ARRAYS[f"gt/{name}"], ARRAYS[f"pred/{name}"]


def label_counts(names):
    """int64 (256, K) with the reduction written out once more, by arithmetic on uint8."""
    counts = np.zeros((256, 256), np.int64)
    for _, raw, prediction in videos(names):
        label = raw - np.uint8(1)
        label[label == 254] = 255
        add_joint_histogram(label, np.ascontiguousarray(prediction), counts)
    return counts[:, :K]


@pytest.mark.parametrize("name", sorted(RESULTS["dataset_metrics"]))
def test_frame_metrics_of_the_published_table(name):
    expected = RESULTS["dataset_metrics"][name]
    scores = score_vss(videos(RESULTS["sets"][name]), K)
    for key in ("aAcc", "mAcc", "mIoU", "mDice"):
        same(scores[key], expected[key])
    same(scores["mIoU_e"], expected["evaluator_mIoU"])
    same(scores["fwIoU"], expected["evaluator_FWIoU"])
    for key, value in expected["reported"].items():
        assert round(100 * scores[key], 2) / 100 == pytest.approx(value, abs=1e-12)
    np.testing.assert_allclose(
        scores["IoU"], ARRAYS[f"iou/{name}"], rtol=0, atol=1e-12, equal_nan=True
    )
    per_class = class_scores(label_counts(RESULTS["sets"][name]), K)
    for key, recorded in (("IoU", "iou"), ("Acc", "acc"), ("Dice", "dice")):
        np.testing.assert_allclose(
            per_class[key], ARRAYS[f"{recorded}/{name}"], rtol=0, atol=1e-12, equal_nan=True
        )


@pytest.mark.parametrize("name", sorted(k[10:] for k in ARRAYS if k.startswith("confusion/")))
def test_confusion_matrix_counts_are_exact(name):
    """Recorded over the videos that the consistency script keeps, those of 17 frames and more."""
    kept = [n for n in RESULTS["sets"][name] if len(ARRAYS[f"gt/{n}"]) >= 17]
    matrix = label_counts(kept)[:K]
    label, prediction = np.nonzero(matrix)
    actual = np.stack([label, prediction, matrix[label, prediction]])
    np.testing.assert_array_equal(actual, ARRAYS[f"confusion/{name}"])


@pytest.mark.parametrize("name", sorted(RESULTS["vc_script_sequence_repos"]))
def test_consistency_script_of_the_method_repositories(name):
    """That script leaves out videos below 17 frames for every one of its numbers."""
    expected = RESULTS["vc_script_sequence_repos"][name]
    scores = score_vss(videos(RESULTS["sets"][name]), K)
    for n in (8, 16):
        same(scores[f"VC{n}"], expected[f"VC{n}"])
        assert scores[f"windows{n}"] == expected[f"windows{n}"]
        assert scores[f"undefined{n}"] == expected[f"nan{n}"]
    kept = score_vss(videos(RESULTS["sets"][name], min_frames=17), K)
    for key, recorded in (
        ("aAcc_e", "Acc"),
        ("mAcc_e", "Acc_class"),
        ("mIoU_e", "mIoU"),
        ("fwIoU", "FWIoU"),
    ):
        same(kept[key], expected[recorded])


@pytest.mark.parametrize("name", sorted(RESULTS["vc_script_baseline"]))
def test_consistency_script_of_the_vspw_baseline(name):
    """It compares raw ids and leaves out only the videos that have no window."""
    expected = RESULTS["vc_script_baseline"][name]
    scores = score_vss(videos(RESULTS["sets"][name]), K, reduce=False, min_frames=1)
    for n in (8, 16):
        same(scores[f"VC{n}"], expected[f"VC{n}"])
        assert scores[f"windows{n}"] == expected[f"windows{n}"]


@pytest.mark.parametrize("name", sorted(RESULTS["per_video"]))
def test_every_window_and_score_of_a_video(name):
    expected = RESULTS["per_video"][name]
    for reduce, suffix in ((True, ""), (False, "_raw_ids")):
        accumulator = VSSAccumulator(K, reduce=reduce, min_frames=1)
        for _, raw, prediction in videos([name]):
            for label, guess in zip(raw, prediction, strict=True):
                accumulator.add(name, label, guess)
        accumulator.finish_video(name)
        for n in (8, 16):
            recorded = [number(v) for v in expected[f"vc{n}_windows{suffix}"]]
            actual = accumulator.window_ratios(name, f"VC{n}")
            np.testing.assert_allclose(actual, recorded, rtol=0, atol=1e-12, equal_nan=True)
    scores = score_vss(videos([name]), K)["per_video"][name]
    assert scores["frames"] == expected["frames"]
    for key, recorded_key in (
        ("mIoU_e", "mIoU"),
        ("fwIoU", "FWIoU"),
        ("aAcc_e", "Acc"),
        ("mAcc_e", "Acc_class"),
    ):
        same(scores[key], expected[recorded_key])


def test_protocol_fixture_of_cffm():
    clips = [
        (f"video{i}", PROTOCOL[f"metric.gt{i}"], PROTOCOL[f"metric.pred{i}"]) for i in range(3)
    ]
    scores = score_vss(clips, K)
    keys = ("aAcc_e", "mAcc_e", "mIoU_e", "fwIoU")
    np.testing.assert_allclose(
        [scores[k] for k in keys], PROTOCOL["metric.all_frames"], rtol=0, atol=1e-12
    )
    script = score_vss([clip for clip in clips if len(clip[1]) > 16], K)
    actual = [script[k] for k in (*keys, "VC8", "VC16")]
    np.testing.assert_allclose(actual, PROTOCOL["metric.vc_script"], rtol=0, atol=1e-12)
    assert (scores["VC8"], scores["VC16"]) == (script["VC8"], script["VC16"])


def test_frame_scores_are_made_of_the_counts_alone():
    counts = label_counts(RESULTS["sets"]["all"])
    scores = score_vss(videos(RESULTS["sets"]["all"]), K)
    for key, value in frame_scores(counts, K).items():
        assert scores[key] == value
