"""Scores equal the official DAVIS-2017 toolkit's numbers on synthetic label maps (to 1e-9)."""

from __future__ import annotations

import numpy as np
import pytest

from vss2.evaluation import score_davis
from vss2.evaluation.contours import MaskContour, boundary_map, dilated, tolerance_radius
from vss2.evaluation.davis_scores import METRICS, STATISTICS, DAVISAccumulator, mean_recall_decay
from vss2.testing.fixtures import load_fixture

DESCRIPTION, ARRAYS = load_fixture("davis_metrics")
NAMES = DESCRIPTION["config"]["sequence_order"]
RESULTS = {"semi-supervised": "res", "unsupervised": "unsup_res"}
FRAMES = {"semi-supervised": "semi", "unsupervised": "unsup"}
TASKS = sorted(RESULTS)


def same(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def sequences(task):
    return [(name, ARRAYS[f"gt_{name}"], ARRAYS[f"{RESULTS[task]}_{name}"]) for name in NAMES]


@pytest.mark.parametrize("task", TASKS)
def test_scores_of_a_task(task):
    expected = DESCRIPTION["tasks"][task]
    scores = score_davis(sequences(task), task)
    same([scores[key] for key in METRICS], [expected["global"][key] for key in METRICS])
    assert list(scores["per_object"]) == [row[0] for row in expected["rows"]]
    for name, *row in expected["rows"]:
        same([scores["per_object"][name][key] for key in STATISTICS], row)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NAMES)
def test_every_object_and_frame(task, name):
    accumulator = DAVISAccumulator(task)
    for truth, result in zip(*{n: pair for n, *pair in sequences(task)}[name], strict=True):
        accumulator.add(name, truth, result)
    accumulator.finish(name)
    scores = accumulator.state_dict()[name]
    same(scores.j, ARRAYS[f"{FRAMES[task]}_J_{name}"])
    same(scores.f, ARRAYS[f"{FRAMES[task]}_F_{name}"])


@pytest.mark.parametrize("pair", DESCRIPTION["pairs"], ids=lambda p: f"{p['gt_vs_result']}")
@pytest.mark.parametrize("threshold", ["0.008", "0.02", "1", "3"])
def test_pairs_of_masks(pair, threshold):
    masks = {"a": ARRAYS["mask_a"], "b": ARRAYS["mask_b"], "empty": np.zeros_like(ARRAYS["mask_a"])}
    void = ARRAYS[pair["void"]] if pair["void"] != "none" else masks["empty"]
    radius = tolerance_radius(*void.shape, float(threshold))
    truth, result = (
        MaskContour((masks[key] & ~void).astype(np.uint8), radius)
        for key in pair["gt_vs_result"].split("_vs_")
    )
    same(truth.region_similarity(result), pair["J"])
    same(truth.contour_accuracy(result), pair[f"F_th_{threshold}"])


def test_contours_disks_and_radii():
    for name in ("a", "edge"):
        boundary = boundary_map(ARRAYS[f"mask_{name}"].astype(np.uint8))
        np.testing.assert_array_equal(boundary, ARRAYS[f"bmap_{name}"])
    full = ARRAYS["bmap_full"]
    np.testing.assert_array_equal(boundary_map(np.ones_like(full)), full)
    for radius in (1, 2, 3, 8):
        point = np.zeros((2 * radius + 1, 2 * radius + 1), np.uint8)
        point[radius, radius] = 1
        np.testing.assert_array_equal(dilated(point, radius), ARRAYS[f"disk_{radius}"])
    for size, radius in DESCRIPTION["bound_pix"].items():
        assert tolerance_radius(*map(int, size.split("x"))) == radius


@pytest.mark.parametrize("row", DESCRIPTION["statistics"], ids=lambda row: str(row["n"]))
def test_statistics_of_an_object(row):
    expected = [row[key] for key in ("mean", "recall", "decay")]
    same(mean_recall_decay(np.array(row["values"])), expected)
