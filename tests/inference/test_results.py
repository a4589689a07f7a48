from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from vss2.data.image_io import read_label
from vss2.data.video_io import open_source
from vss2.errors import InputError
from vss2.inference import Prediction
from vss2.inference.results import EvenSample, ResultWriter

NAMES, COLORS = ["sky", "sea", "sand"], [(90, 160, 250), (20, 60, 200), (240, 210, 120)]


def _predictions(count: int, size=(33, 47)):
    rng = np.random.default_rng(0)
    for k in range(count):
        labels = np.zeros(size, np.uint8)
        labels[k:] = 2
        yield Prediction(f"{k:03d}", rng.integers(0, 256, (*size, 3), np.uint8), labels)


def _run(folder, count=5, **options):
    with ResultWriter(folder, NAMES, COLORS, **options) as writer:
        for prediction in _predictions(count):
            writer.add(prediction)
    return writer


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_even_sample_of_any_length(count):
    for total in range(1, 150):
        sample = EvenSample(count)
        for k in range(total):
            sample.add(k if sample.wants_next() else None)
            assert len(sample._kept) < 4 * count
        chosen = sample.chosen()
        assert len(chosen) == min(count, total)
        assert chosen[0] == 0
        gaps = np.diff(chosen)
        assert all(gaps > 0)
        if count > 1 and total > 1:
            assert gaps.max() <= gaps.min() + sample.stride
            assert total - 1 - chosen[-1] < sample.stride


def test_results_of_a_run(tmp_path):
    writer = _run(tmp_path / "out", fps=9.0)
    assert all(path.exists() for path in writer.paths())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "contact_sheet.png",
        "labels",
        "overlay.mp4",
    ]
    for name, _, labels, *_ in _predictions(5):
        path = tmp_path / "out" / "labels" / f"{name}.png"
        assert np.array_equal(read_label(path), labels)
        with Image.open(path) as image:
            assert image.mode == "P"
            assert image.getpalette()[6:9] == list(COLORS[2])
    video = open_source(tmp_path / "out" / "overlay.mp4")
    assert (video.num_frames, video.fps) == (5, 9.0)
    assert next(iter(video))[1].shape == (34, 48, 3)


def test_contact_sheet_shows_frames_and_the_classes_that_occur(tmp_path, monkeypatch):
    from vss2.inference import results

    listed = []
    legend = results.legend
    monkeypatch.setattr(
        results, "legend", lambda *a, **k: listed.append([int(i) for i in a[2]]) or legend(*a, **k)
    )
    _run(tmp_path, count=30, rows=6)
    assert listed == [[0, 2]]
    sheet = cv2.imread(str(tmp_path / "contact_sheet.png"))
    assert sheet.shape[1] > 4 * 224
    assert sheet.shape[0] > 3 * 224 * 33 / 47


def test_a_single_frame_has_a_sheet(tmp_path):
    _run(tmp_path, count=1)
    assert cv2.imread(str(tmp_path / "contact_sheet.png")) is not None


def test_large_frames_are_small_on_the_sheet(tmp_path):
    with ResultWriter(tmp_path, NAMES, COLORS) as writer:
        for prediction in _predictions(3, size=(480, 854)):
            writer.add(prediction)
    assert cv2.imread(str(tmp_path / "contact_sheet.png")).shape[1] < 1400


def test_all_forms_at_once(tmp_path):
    writer = ResultWriter(tmp_path, NAMES, COLORS, rle=True, scores=True, side_by_side=True)
    with writer:
        for k, prediction in enumerate(_predictions(4)):
            scores = np.full((3, 5, 6), k, np.float16)
            writer.add(prediction._replace(frame_index=10 + k, scores=scores))
    assert sorted(writer.outputs) == sorted(p.name for p in tmp_path.iterdir())
    for k, prediction in enumerate(_predictions(4)):
        document = json.loads((tmp_path / "rle" / f"{k:03d}.json").read_text())
        assert (document["file_name"], document["image_id"]) == (f"{k:03d}", 10 + k)
        whole = np.full((33, 47), 255, np.uint8)
        for entry in document["annotations"]:
            whole[coco_mask.decode(entry["segmentation"]).astype(bool)] = entry["category_id"]
        assert np.array_equal(whole, prediction.labels)
        with np.load(tmp_path / "scores" / f"{k:03d}.npz") as file:
            assert file["scores"].dtype == np.float16
            assert (file["scores"] == k).all()
    pairs = open_source(tmp_path / "side_by_side.mp4")
    assert pairs.num_frames == 4
    assert next(iter(pairs))[1].shape == (34, 98, 3)


def test_scores_that_were_not_asked_of_the_predictor(tmp_path):
    with (
        pytest.raises(InputError, match="000 has no scores"),
        ResultWriter(tmp_path, NAMES, COLORS, scores=True) as writer,
    ):
        writer.add(next(_predictions(1)))


def test_a_frame_is_there_when_all_its_files_are(tmp_path):
    writer = ResultWriter(tmp_path, NAMES, COLORS, rle=True)
    with writer:
        for prediction in _predictions(3):
            writer.add(prediction)
    assert [writer.has(f"{k:03d}") for k in range(4)] == [True, True, True, False]
    (tmp_path / "rle" / "001.json").unlink()
    (tmp_path / "labels" / "002.png").write_bytes(b"")
    assert [writer.has(f"{k:03d}") for k in range(3)] == [True, False, False]
    name, frame, labels, *_ = next(_predictions(1))
    assert np.array_equal(writer.stored_labels(name, frame), labels)
    with pytest.raises(InputError, match=r"000\.png"):
        writer.stored_labels(name, frame[:5])


def test_a_stopped_run_leaves_the_frames_files_and_no_video(tmp_path):
    def stop():
        with ResultWriter(tmp_path, NAMES, COLORS, side_by_side=True) as writer:
            for prediction in _predictions(2):
                writer.add(prediction)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert [p.name for p in tmp_path.iterdir()] == ["labels"]
    assert sorted(p.name for p in (tmp_path / "labels").iterdir()) == ["000.png", "001.png"]


def test_the_folder_must_be_writable(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="Cannot write"):
        _run(tmp_path / "file" / "below")


def test_no_frames_is_an_error(tmp_path):
    with pytest.raises(InputError, match="No frame"):
        _run(tmp_path, count=0)
    assert [p.name for p in tmp_path.iterdir()] == ["labels"]
