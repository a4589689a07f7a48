"""`VSSEvaluator`: pairing by identity, late answers, ranks, files and errors."""

from __future__ import annotations

import csv
import json
import logging
import math

import numpy as np
import pytest
import torch

from vss2.d2.data import MetadataCatalog
from vss2.d2.evaluation import inference_on_dataset, print_csv_format
from vss2.d2.utils import comm
from vss2.data.image_io import read_image, write_label
from vss2.engine.launch import launch
from vss2.errors import InputError
from vss2.evaluation import EVALUATOR_REGISTRY, VSSEvaluator, score_vss
from vss2.evaluation.report import METRICS, scores_table

NAMES = ("sky", "tree-top", "road")
SET = "evaluator_test_clips"
LENGTHS = {"b": 20, "a": 9, "c": 17}


def register():
    MetadataCatalog.get(SET).set(stuff_classes=list(NAMES))


@pytest.fixture(autouse=True)
def _dataset():
    register()
    yield
    MetadataCatalog.remove(SET)


def make_clips():
    """{name: (raw labels, predictions)}, the same in every process."""
    rng = np.random.default_rng(0)
    clips = {}
    for name, frames in LENGTHS.items():
        raw = rng.integers(0, 4, (1, 6, 8)).repeat(frames, axis=0).astype(np.uint8)
        raw[frames // 2 :, :2] = 255
        guess = rng.integers(0, 3, raw.shape)
        sure = rng.random(raw.shape) < 0.95
        clips[name] = raw, np.where(sure & (raw > 0), raw - 1, guess).clip(0, 2).astype(np.uint8)
    return clips


def make_items(clips, root):
    """Evaluation items and the outputs that belong to them, in order."""
    items, outputs = [], []
    for name, (raw, prediction) in clips.items():
        for i in range(len(raw)):
            path = root / name / f"{i:03d}.png"
            write_label(path, raw[i])
            base = {"video_id": name, "frame_index": i, "label_file": str(path)}
            items.append({**base, "last_frame": i == len(raw) - 1})
            outputs.append({**base, "labels": torch.from_numpy(prediction[i])})
    return items, outputs


@pytest.fixture
def clips():
    return make_clips()


@pytest.fixture
def data(clips, tmp_path):
    return make_items(clips, tmp_path / "labels")


def expected_scores(clips, **settings):
    return score_vss([(k, *v) for k, v in clips.items()], len(NAMES), **settings)


def run(evaluator, items, outputs):
    for item, output in zip(items, outputs, strict=True):
        evaluator.process([item], [output])
    return evaluator.evaluate()


def assert_percent_of(result, scores):
    assert list(result) == ["sem_seg"]
    assert list(result["sem_seg"]) == [*METRICS, *(f"IoU-{name}" for name in NAMES)]
    for key in METRICS:
        np.testing.assert_array_equal(result["sem_seg"][key], 100 * scores[key])
    for name, iou in zip(NAMES, scores["IoU"], strict=True):
        np.testing.assert_array_equal(result["sem_seg"][f"IoU-{name}"], 100 * iou)


def test_result_is_score_vss_in_percent(clips, data):
    result = run(VSSEvaluator(SET), *data)
    assert_percent_of(result, expected_scores(clips))
    assert all(type(value) is float for value in result["sem_seg"].values())
    print_csv_format(result)


@pytest.mark.parametrize(
    "settings", [{"min_frames": 1}, {"drop_last_window": False}, {"reduce": False, "min_frames": 9}]
)
def test_settings_reach_the_scores(clips, data, settings):
    result = run(VSSEvaluator(SET, **settings), *data)
    assert_percent_of(result, expected_scores(clips, **settings))


def test_late_answers_are_paired_by_identity(clips, data):
    """All answers of a video come with its last frame, those of two videos in one call."""
    items, outputs = data
    evaluator = VSSEvaluator(SET)
    for start in range(0, len(items), 29):  # a call ends with the last frame of a or c
        evaluator.process(items[start : start + 29 - 1], [])
        evaluator.process(items[start + 29 - 1 : start + 29], outputs[start : start + 29])
    assert_percent_of(evaluator.evaluate(), expected_scores(clips))


def test_reset_forgets(clips, data):
    evaluator = VSSEvaluator(SET)
    run(evaluator, *data)
    evaluator.reset()
    assert_percent_of(run(evaluator, *data), expected_scores(clips))


def test_score_maps_are_read_by_their_largest_class(clips, data):
    items, outputs = data
    for output in outputs:
        ids = output.pop("labels").long()
        output["sem_seg"] = torch.nn.functional.one_hot(ids, 3).permute(2, 0, 1).float()
    assert_percent_of(run(VSSEvaluator(SET), items, outputs), expected_scores(clips))
    evaluator = VSSEvaluator(SET)
    with pytest.raises(InputError, match=r"'b', frame 0 have shape \(2, 6, 8\).*3 classes"):
        evaluator.process([], [{**outputs[0], "sem_seg": outputs[0]["sem_seg"][:2]}])


def test_detectron2_inference_loop(clips, data):
    items, outputs = data
    answers = {(o["video_id"], o["frame_index"]): o for o in outputs}

    class Model(torch.nn.Module):
        def forward(self, batch):
            return [answers[item["video_id"], item["frame_index"]] for item in batch]

    batches = [items[i : i + 3] for i in range(0, len(items), 3)]
    result = inference_on_dataset(Model(), batches, VSSEvaluator(SET))
    assert_percent_of(result, expected_scores(clips))


def test_files_state_their_unit(clips, data, tmp_path, caplog):
    out = tmp_path / "inference"
    with caplog.at_level(logging.INFO, logger="vss2.evaluation"):
        result = run(VSSEvaluator(SET, output_dir=str(out)), *data)["sem_seg"]
    assert sorted(p.name for p in out.iterdir()) == [
        "per_class_iou.png",
        "per_video.csv",
        "results.json",
    ]
    scores = expected_scores(clips)
    stored = json.loads((out / "results.json").read_text())
    assert stored["unit"] == "%"
    assert stored["scores"] == {key: result[key] for key in METRICS}
    assert stored["IoU"] == {name: result[f"IoU-{name}"] for name in NAMES}
    assert (stored["videos"], stored["frames"]) == (3, 46)
    assert stored["windows8"] == scores["windows8"]
    assert stored["settings"] == {"min_frames": 17, "drop_last_window": True, "reduce": True}
    rows = list(csv.DictReader((out / "per_video.csv").open()))
    assert [row["video"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["VC8 [%]"] == ""  # nine frames: below min_frames
    assert float(rows[1]["VC8 [%]"]) == pytest.approx(
        100 * scores["per_video"]["b"]["VC8"], abs=1e-4
    )
    assert rows[1]["windows8"] == "12"
    assert read_image(out / "per_class_iou.png").shape[2] == 3
    assert f"Results on {SET}: 3 videos, 46 frames, all values in %" in caplog.text
    assert "tree-top" in caplog.text


def test_undefined_values_are_null_in_json_and_a_dash_in_the_table(clips, tmp_path):
    short = {"a": clips["a"]}
    items, outputs = make_items(short, tmp_path / "labels")
    result = run(VSSEvaluator(SET, output_dir=tmp_path / "out"), items, outputs)["sem_seg"]
    assert math.isnan(result["VC8"])
    assert math.isnan(result["consistency16"])
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["scores"]["VC8"] is None
    table = scores_table(expected_scores(short), NAMES, "short")
    row = next(line for line in table.splitlines() if line.startswith("|    16 "))
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["16", "-", "0", "0", "-"]


def test_frames_without_a_label_are_not_scored(clips, data):
    items, outputs = data
    for output in outputs:
        if output["video_id"] == "a" or output["frame_index"] == 3:
            output["label_file"] = None
    kept = {
        name: tuple(np.delete(maps, 3, axis=0) for maps in pair)
        for name, pair in clips.items()
        if name != "a"
    }
    assert_percent_of(run(VSSEvaluator(SET), items, outputs), expected_scores(kept))


def test_a_data_set_without_labels_is_an_error(data):
    items, outputs = data
    outputs = [{**output, "label_file": None} for output in outputs]
    with pytest.raises(InputError, match=f"'{SET}' cannot be scored: none of its frames"):
        run(VSSEvaluator(SET), items, outputs)


def test_errors_name_video_and_frame(data, tmp_path):
    items, outputs = data
    evaluator = VSSEvaluator(SET)
    small = {**outputs[0], "labels": outputs[0]["labels"][:, :4]}
    with pytest.raises(InputError, match="video 'b', frame 0 has size 6x4, its label 6x8"):
        evaluator.process(items[:1], [small])
    evaluator.reset()
    with pytest.raises(InputError, match="Video 'b': frame 2 came before frame 1"):
        evaluator.process(items[:3], [outputs[0], outputs[2]])
    evaluator.reset()
    with pytest.raises(InputError, match="Video 'b': frame 0 came twice"):
        evaluator.process(items[:1], [outputs[0], outputs[0]])
    evaluator.reset()
    missing = tmp_path / "gone.png"
    with pytest.raises(InputError, match=r"gone\.png"):
        evaluator.process(items[:1], [{**outputs[0], "label_file": str(missing)}])


def test_lost_outputs_are_found_at_the_end(data):
    items, outputs = data
    evaluator = VSSEvaluator(SET)
    evaluator.process(items[:20], outputs[:18])
    with pytest.raises(InputError, match="Video 'b': frame 18 is missing; 18 of 20 frames came"):
        evaluator.evaluate()
    evaluator.reset()
    evaluator.process(items[:20], [])
    with pytest.raises(InputError, match="'b' cannot be finished: no frame of it came"):
        evaluator.evaluate()


def test_unknown_data_set_and_registry():
    with pytest.raises(InputError, match=rf"no data set 'evaluator_test_clip'.*'{SET}'"):
        VSSEvaluator("evaluator_test_clip")
    assert "evaluator_test_clip" not in MetadataCatalog.list()
    MetadataCatalog.get("evaluator_test_bare").set(ignore_label=255)
    try:
        with pytest.raises(InputError, match="'evaluator_test_bare' has no `stuff_classes`"):
            VSSEvaluator("evaluator_test_bare")
    finally:
        MetadataCatalog.remove("evaluator_test_bare")
    assert EVALUATOR_REGISTRY.get("VSSEvaluator") is VSSEvaluator


def _rank(root):
    """Rank 0 has video c, rank 1 the others; then both have video c; then rank 1 loses a frame."""
    rank = comm.get_rank()
    register()
    clips = make_clips()

    def evaluate(names, lose=0):
        evaluator = VSSEvaluator(SET, output_dir=root / "out")
        items, outputs = make_items({n: clips[n] for n in names}, root / f"labels{rank}")
        evaluator.process(items, outputs[: len(outputs) - lose])
        return evaluator.evaluate()

    result = evaluate(["c"] if rank == 0 else ["b", "a"])
    errors = []
    for names, lose in ((["c"], 0), (["ca"[rank]], rank)):
        try:
            evaluate(names, lose)
        except InputError as error:
            errors.append(str(error))
    torch.save({"result": dict(result.get("sem_seg", {})), "errors": errors}, root / f"{rank}.pt")


def test_two_ranks_give_the_digits_of_one(clips, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launch(_rank, (tmp_path,), num_gpus=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert_percent_of({"sem_seg": first["result"]}, expected_scores(clips))
    assert second["result"] == {}
    assert first["errors"] == second["errors"]
    assert "Video 'c' was scored by 2 processes" in first["errors"][0]
    assert "Video 'a': frame 8 is missing; 8 of 9 frames came" in first["errors"][1]
