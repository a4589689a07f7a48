"""`YouTubeVOSExporter`: what goes into the zip, and scores of seen and unseen categories."""

from __future__ import annotations

import json
import math
import zipfile

import numpy as np
import pytest
import torch

from vss2.d2.data import MetadataCatalog
from vss2.data.image_io import read_label, write_label
from vss2.errors import InputError
from vss2.evaluation import YouTubeVOSExporter
from vss2.evaluation.contours import MaskContour, tolerance_radius

SET = "youtube_vos_export_test"
# Every fifth frame is required; in video "b", object 7 is given at frame 5.
GIVEN = {"a": {0: [1]}, "b": {0: [3], 5: [7]}}
CATEGORIES = {"a": {"1": "dog"}, "b": {"3": "yeti", "7": "dog"}}


@pytest.fixture(autouse=True)
def _dataset():
    MetadataCatalog.get(SET).set(evaluator_type="youtube_vos")
    yield
    MetadataCatalog.remove(SET)


def make_data(root, frames=16):
    """Items, answers to required frames, and {(video, id): [(truth, result), ...]} that count."""
    rng = np.random.default_rng(1)
    items, answers, counted = [], [], {}
    for video, given in GIVEN.items():
        born = {i: t for t, ids in given.items() for i in ids}
        for t in range(frames):
            truth = np.zeros((18, 25), np.uint8)
            for row, (identity, first) in enumerate(born.items()):
                if t >= first:
                    truth[2 + 8 * row : 8 + 8 * row, t : t + 7] = identity
            result = np.where(rng.random(truth.shape) < 0.3, 0, truth).astype(np.uint8)
            label = root / video / f"{t + 100:05d}.png"
            if t % 5 == 0:
                write_label(label, truth)
            item = {
                "video_id": video,
                "frame_index": t,
                "file_name": f"/all_frames/{video}/{t + 100:05d}.jpg",
                "label_file": str(label) if t % 5 == 0 else None,
                "required": t % 5 == 0,
                "last_frame": t == frames - 1,
            }
            if t in given:
                item["objects"] = given[t]
            items.append(item)
            if item["required"]:
                answers.append({**item, "mask": torch.from_numpy(result)})
                for identity, first in born.items():
                    if t > first:
                        pair = truth == identity, result == identity
                        counted.setdefault((video, identity), []).append(pair)
    return items, answers, counted


def run(exporter, items, answers):
    waiting = list(answers)
    for item in items:
        exporter.process([item], [waiting.pop(0)] if item["required"] else [])
    assert not waiting
    return exporter.evaluate()


def object_means(counted):
    """{(video, id): (J, F)}."""
    means = {}
    for key, pairs in counted.items():
        scored = []
        for pair in pairs:
            radius = tolerance_radius(*pair[0].shape)
            g, s = (MaskContour(mask.astype(np.uint8), radius) for mask in pair)
            scored.append((g.region_similarity(s), g.contour_accuracy(s)))
        means[key] = tuple(np.mean(scored, axis=0))
    return means


def write_meta(root):
    def document(videos):
        return json.dumps(
            {
                "videos": {
                    video: {
                        "objects": {i: {"category": c, "frames": []} for i, c in objects.items()}
                    }
                    for video, objects in videos.items()
                }
            }
        )

    (root / "own.json").write_text(document(CATEGORIES))
    (root / "train.json").write_text(document({"x": {"1": "dog", "2": "cat"}}))
    MetadataCatalog.get(SET).set(meta_file="own.json", train_meta_file="train.json")


def test_archive_holds_required_frames_by_name(tmp_path):
    items, answers, _ = make_data(tmp_path / "labels")
    out = tmp_path / "out"
    run(YouTubeVOSExporter(SET, output_dir=out), items, answers)
    with zipfile.ZipFile(out / "submission.zip") as archive:
        assert archive.namelist() == [
            f"Annotations/{video}/{t + 100:05d}.png" for video in "ab" for t in (0, 5, 10, 15)
        ]
    for answer in answers:
        stem = answer["file_name"].split("/")[-1][:-4]
        path = out / "Annotations" / answer["video_id"] / f"{stem}.png"
        np.testing.assert_array_equal(read_label(path), answer["mask"].numpy())


def test_seen_and_unseen_categories(tmp_path, monkeypatch):
    items, answers, counted = make_data(tmp_path / "labels")
    write_meta(tmp_path)
    monkeypatch.setenv("VSS2_DATASETS", str(tmp_path))
    result = run(YouTubeVOSExporter(SET, output_dir=tmp_path / "out"), items, answers)["vos"]
    means = object_means(counted)
    assert len(counted["a", 1]) == 3
    assert len(counted["b", 7]) == 2  # given at frame 5, so it counts at 10 and 15
    seen = np.mean([means["a", 1], means["b", 7]], axis=0)
    unseen = np.array(means["b", 3])
    assert result["J_seen"] == pytest.approx(100 * seen[0], abs=1e-12)
    assert result["F_seen"] == pytest.approx(100 * seen[1], abs=1e-12)
    assert result["J_unseen"] == pytest.approx(100 * unseen[0], abs=1e-12)
    assert result["F_unseen"] == pytest.approx(100 * unseen[1], abs=1e-12)
    assert result["overall"] == pytest.approx(25 * (seen + unseen).sum(), abs=1e-12)
    assert result["J"] == pytest.approx(100 * np.mean([m[0] for m in means.values()]), abs=1e-12)
    stored = json.loads((tmp_path / "out/results.json").read_text())
    assert stored["scores"] == result
    assert stored["per_object"]["b_7"]["frames"] == 2


def test_kinds_that_do_not_occur_are_undefined(tmp_path, monkeypatch):
    items, answers, _ = make_data(tmp_path / "labels")
    items, answers = ([x for x in part if x["video_id"] == "a"] for part in (items, answers))
    write_meta(tmp_path)
    monkeypatch.setenv("VSS2_DATASETS", str(tmp_path))
    result = run(YouTubeVOSExporter(SET, output_dir=tmp_path / "out"), items, answers)["vos"]
    assert math.isnan(result["J_unseen"])
    assert math.isnan(result["overall"])
    assert json.loads((tmp_path / "out/results.json").read_text())["scores"]["overall"] is None


def test_without_categories_and_without_annotations(tmp_path, monkeypatch):
    items, answers, counted = make_data(tmp_path / "labels")
    result = run(YouTubeVOSExporter(SET), items, answers)["vos"]
    means = object_means(counted).values()
    assert list(result) == ["J&F", "J", "F"]
    assert result["J&F"] == pytest.approx(50 * np.mean([sum(m) for m in means]), abs=1e-12)
    private = [{**answer, "label_file": None} for answer in answers]
    assert run(YouTubeVOSExporter(SET, output_dir=tmp_path / "out"), items, private) == {}
    assert (tmp_path / "out/submission.zip").is_file()
    assert not (tmp_path / "out/results.json").exists()


def test_bad_answers(tmp_path, monkeypatch):
    items, answers, _ = make_data(tmp_path / "labels")
    exporter = YouTubeVOSExporter(SET)
    exporter.process(items[:16], answers[:3])
    with pytest.raises(InputError, match="'a': the answer to frame 15 is missing"):
        exporter.evaluate()
    exporter.reset()
    exporter.process(items[:1], answers[:1])
    small = {**answers[1], "mask": answers[1]["mask"][:4]}
    with pytest.raises(InputError, match=r"'a', frame 00105\.png has size 4x25"):
        exporter.process(items[1:6], [small])
    write_meta(tmp_path)
    meta = json.loads((tmp_path / "own.json").read_text())
    del meta["videos"]["b"]["objects"]["7"]
    (tmp_path / "own.json").write_text(json.dumps(meta))
    monkeypatch.setenv("VSS2_DATASETS", str(tmp_path))
    with pytest.raises(InputError, match="Object 7 of video 'b' has no category"):
        run(YouTubeVOSExporter(SET), items, answers)
