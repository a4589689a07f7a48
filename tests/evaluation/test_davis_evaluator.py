"""`DAVISEvaluator`: files as servers and toolkits want them, ranks, answers that go missing."""

from __future__ import annotations

import csv
import json
import logging
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from vss2.d2.evaluation import inference_on_dataset, print_csv_format
from vss2.data.image_io import read_label, write_label
from vss2.data.vos_palette import DAVIS_PALETTE
from vss2.errors import InputError
from vss2.evaluation import EVALUATOR_REGISTRY, DAVISEvaluator, score_davis
from vss2.evaluation.davis_scores import METRICS

SET = "davis_evaluator_test"
LENGTHS = {"judo": 7, "bike": 4, "dogs": 5}


def make_clips():
    """{name: (annotations, results)}, the same in every process."""
    rng = np.random.default_rng(0)
    clips = {}
    for name, frames in LENGTHS.items():
        truth = np.zeros((frames, 24, 32), np.uint8)
        for t in range(frames):
            truth[t, 3 + t : 12 + t, 4:14] = 1
            truth[t, 8:20, 18 - t : 27 - t] = 2
        clips[name] = truth, np.where(rng.random(truth.shape) < 0.2, 0, truth).astype(np.uint8)
    return clips


def make_items(clips, root):
    """Evaluation items and the answers that belong to them, in order."""
    items, answers = [], []
    for name, (truth, result) in clips.items():
        for t in range(len(truth)):
            path = root / name / f"{t:05d}.png"
            write_label(path, truth[t])
            base = {"video_id": name, "frame_index": t, "label_file": str(path)}
            base["file_name"] = f"/frames/{name}/{t:05d}.jpg"
            items.append({**base, "last_frame": t == len(truth) - 1, "required": True})
            answers.append({**base, "mask": torch.from_numpy(result[t]), "object_ids": [1, 2]})
    return items, answers


@pytest.fixture
def clips():
    return make_clips()


@pytest.fixture
def data(clips, tmp_path):
    return make_items(clips, tmp_path / "labels")


def expected(clips, task="semi-supervised"):
    return score_davis(sorted((name, *pair) for name, pair in clips.items()), task)


def run(evaluator, items, answers):
    for item, answer in zip(items, answers, strict=True):
        evaluator.process([item], [answer])
    return evaluator.evaluate()


def assert_percent_of(result, scores):
    assert list(result) == ["vos"]
    assert list(result["vos"]) == ["J&F", "J", "F", *METRICS]
    for key in METRICS:
        assert result["vos"][key] == 100 * scores[key]
    for key in ("J&F", "J", "F"):
        assert result["vos"][key] == 100 * scores[f"{key}-Mean"]


@pytest.mark.parametrize("task", ["semi-supervised", "unsupervised", "davis-2016"])
def test_result_is_score_davis_in_percent(clips, data, task, caplog):
    result = run(DAVISEvaluator(SET, task=task), *data)
    assert_percent_of(result, expected(clips, task))
    with caplog.at_level(logging.INFO):
        print_csv_format(result)
    assert "copypaste: J&F,J,F" in caplog.text


def test_detectron2_inference_loop_and_reset(clips, data):
    items, answers = data
    known = {(a["video_id"], a["frame_index"]): a for a in answers}

    class Model(torch.nn.Module):
        def forward(self, batch):
            return [known[item["video_id"], item["frame_index"]] for item in batch]

    evaluator = DAVISEvaluator(SET)
    run(evaluator, *data)
    batches = [items[i : i + 3] for i in range(0, len(items), 3)]
    assert_percent_of(inference_on_dataset(Model(), batches, evaluator), expected(clips))


def test_late_answers_are_paired_by_identity(clips, data):
    items, answers = data
    evaluator = DAVISEvaluator(SET)
    for item in items:
        evaluator.process([item], [])
    evaluator.process([], answers)
    assert_percent_of(evaluator.evaluate(), expected(clips))


def test_masks_scores_and_archive(clips, data, tmp_path, caplog):
    out = tmp_path / "inference"
    (out / "judo").mkdir(parents=True)
    (out / "judo/99999.png").write_bytes(b"of an earlier run")
    with caplog.at_level(logging.INFO, logger="vss2.evaluation"):
        result = run(DAVISEvaluator(SET, output_dir=out), *data)["vos"]
    for name, (_, masks) in clips.items():
        for t, mask in enumerate(masks):
            path = out / name / f"{t:05d}.png"
            np.testing.assert_array_equal(read_label(path), mask)
            with Image.open(path) as image:
                assert image.mode == "P"
                assert tuple(image.getpalette()[3:9]) == DAVIS_PALETTE[1] + DAVIS_PALETTE[2]
    with zipfile.ZipFile(out / "submission.zip") as archive:
        assert archive.namelist() == sorted(
            f"{name}/{t:05d}.png" for name, frames in LENGTHS.items() for t in range(frames)
        )
        assert archive.read("bike/00002.png") == (out / "bike/00002.png").read_bytes()
    scores = expected(clips)
    stored = json.loads((out / "results.json").read_text())
    assert (stored["unit"], stored["task"], stored["objects"]) == ("%", "semi-supervised", 6)
    assert stored["scores"] == {key: result[key] for key in METRICS}
    assert (
        stored["per_object"]["judo_2"]["F-Mean"] == 100 * scores["per_object"]["judo_2"]["F-Mean"]
    )
    assert set(stored["per_sequence"]) == set(LENGTHS)
    rows = list(csv.DictReader((out / f"per-sequence_results-{SET}.csv").open()))
    assert [row["Sequence"] for row in rows] == [
        f"{n}_{k}" for n in sorted(LENGTHS) for k in (1, 2)
    ]
    assert rows[0]["J-Mean"] == f"{scores['per_object']['bike_1']['J-Mean']:.3f}"
    (row,) = csv.DictReader((out / f"global_results-{SET}.csv").open())
    assert row == {key: f"{scores[key]:.3f}" for key in METRICS}
    assert f"Results on {SET} (semi-supervised): 6 objects, all values in %" in caplog.text
    assert "| judo_1" in caplog.text


def test_davis_2016_writes_black_and_white(clips, data, tmp_path):
    run(DAVISEvaluator(SET, output_dir=tmp_path / "out", task="davis-2016"), *data)
    with Image.open(tmp_path / "out/judo/00003.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.array(image), np.where(clips["judo"][1][3], 255, 0))


def test_sequences_with_a_first_annotation_only_are_for_the_server(clips, data, tmp_path, caplog):
    items, answers = data
    for answer in answers:
        if answer["frame_index"] or answer["video_id"] == "dogs":
            answer["label_file"] = None
    assert run(DAVISEvaluator(SET, output_dir=tmp_path / "out"), items, answers) == {}
    assert "nothing can be scored" in caplog.text
    with zipfile.ZipFile(tmp_path / "out/submission.zip") as archive:
        assert len(archive.namelist()) == sum(LENGTHS.values())


def test_annotated_frames_are_those_that_count(clips, data):
    items, answers = data
    for answer in answers:
        if answer["video_id"] == "judo" and answer["frame_index"] in (2, 6):
            answer["label_file"] = None
    kept = {**clips, "judo": tuple(np.delete(m, [2, 6], axis=0) for m in clips["judo"])}
    assert_percent_of(run(DAVISEvaluator(SET), items, answers), expected(kept))


def test_lost_and_wrong_answers(data):
    items, answers = data
    evaluator = DAVISEvaluator(SET)
    evaluator.process(items[:7], answers[:5])
    with pytest.raises(InputError, match=r"'judo': the answer to frame 5 is missing \(2 in all\)"):
        evaluator.evaluate()
    evaluator.reset()
    evaluator.process(items[:3], answers[:3])
    with pytest.raises(InputError, match="'judo' did not come to its end"):
        evaluator.evaluate()
    evaluator.reset()
    with pytest.raises(
        InputError, match="'judo': the answer to frame 1 came where that to frame 0"
    ):
        evaluator.process(items[:2], answers[1:2])
    evaluator.reset()
    evaluator.process(items[:1], answers[:1])
    with pytest.raises(InputError, match="frame 0 came where none was due"):
        evaluator.process([], answers[:1])
    evaluator.reset()
    small = {**answers[0], "mask": answers[0]["mask"][:, :5]}
    with pytest.raises(InputError, match=r"'judo', frame 00000\.png has size 24x5"):
        evaluator.process(items[:1], [small])
    evaluator.reset()
    with pytest.raises(InputError, match="frame 0 of video 'judo' has no 'mask'"):
        evaluator.process(items[:1], [{**answers[0], "mask": None}])
    evaluator.reset()
    with pytest.raises(InputError, match="gave no frame"):
        evaluator.evaluate()
    assert EVALUATOR_REGISTRY.get("DAVISEvaluator") is DAVISEvaluator
