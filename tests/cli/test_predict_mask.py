"""`vss2 predict --mask`: options, errors before any work, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

import vss2
from tests.inference.tiny_propagator import TinyPropagator
from tests.modeling.tiny import TinySegmentor
from vss2.cli import predict
from vss2.data.image_io import read_label, write_image, write_label
from vss2.data.video_io import VideoWriter, open_source
from vss2.modeling.window import OffsetWindow

SIZE = (20, 30)


def square(identity, left, size=SIZE):
    ids = np.zeros(size, np.uint8)
    ids[6:12, left : left + 6] = identity
    return ids


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs the tool on 4 frames; returns its status and what it printed as an error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").write_bytes(b"weights")
    rng = np.random.default_rng(0)
    for k in range(4):
        write_image(tmp_path / f"frames/{k:03d}.png", rng.integers(0, 256, (*SIZE, 3), np.uint8))
    write_label(tmp_path / "first.png", square(2, 1))
    write_label(tmp_path / "later/002.png", square(7, 20))

    def call(*options, model=None, input="frames"):
        model = TinyPropagator() if model is None else model
        model.cfg = OmegaConf.create({"model": {}, "dataloader": {"test": {"mapper": {}}}})
        monkeypatch.setattr(vss2, "load", lambda *args, **kwargs: model)
        words = ["--config-file", "x", "--weights", "w.pth", "--input", input, "--output", "out"]
        status = predict.main([*words, *options])
        captured = capsys.readouterr()
        call.model, call.printed = model, captured.out
        return status, captured.err

    return call


def labels(k):
    return read_label(f"out/labels/{k:03d}.png")


def test_objects_are_followed_added_and_written(run):
    assert run("--mask", "first.png", "--mask", "later", "--rle")[0] == 0
    for k in range(4):
        assert labels(k).shape == SIZE
        assert set(np.unique(labels(k))) == ({0, 2} if k < 2 else {0, 2, 7})
        document = json.loads(Path(f"out/rle/{k:03d}.json").read_text())
        assert [a["category_id"] for a in document["annotations"]] == ([2] if k < 2 else [2, 7])
    assert len(list(open_source("out/overlay.mp4"))) == 4
    session = run.model.sessions[-1]
    assert (session.protocol, session.size) == ("generic", None)
    manifest = json.loads(Path("out/predict.json").read_text())
    assert manifest["identity"]["masks"]["count"] == 2
    assert manifest["status"] == "complete"


def test_resolution(run):
    assert run("--mask", "first.png", "--resolution", "10")[0] == 0
    assert run.model.sessions[-1].maps.shape[1:] == (10, 15)
    assert labels(3).shape == SIZE


def test_a_video_file(run, tmp_path):
    with VideoWriter(tmp_path / "v.mp4") as video:
        for _ in range(3):
            video.write(np.full((*SIZE, 3), 90, np.uint8))
    write_label(tmp_path / "named/000001.png", square(4, 12))
    write_label(tmp_path / "named/000009.png", square(4, 12))
    assert run("--mask", "first.png", "--mask", "named", input="v.mp4")[0] == 0
    assert set(np.unique(read_label("out/labels/000002.png"))) == {0, 2, 4}
    assert "not used, no frame of its name came: named/000009.png" in run.printed


def test_other_masks_are_another_run(run, tmp_path):
    assert run("--mask", "first.png")[0] == 0
    assert "Nothing to do" in (run("--mask", "first.png", "--resume"), run.printed)[1]
    write_label(tmp_path / "first.png", square(2, 2))
    status, error = run("--mask", "first.png", "--resume")
    assert status == 2
    assert "another masks digest" in error
    status, error = run("--mask", "first.png", "--resolution", "10", "--resume")
    assert "session size" in error


def test_masks_of_another_size(run, tmp_path):
    write_label(tmp_path / "later/002.png", square(7, 20, size=(20, 29)))
    status, error = run("--mask", "first.png", "--mask", "later")
    assert status == 2
    assert "later/002.png is 20x29, its frame 20x30" in error
    assert not (tmp_path / "out").exists()
    assert run("--mask", "first.png", "--mask", "later", "--resize-masks")[0] == 0
    assert set(np.unique(labels(2))) == {0, 2, 7}


def test_max_objects(run, tmp_path):
    ids = np.zeros(SIZE, np.uint8)
    for k in range(25):
        ids[4 * (k // 6) : 4 * (k // 6) + 4, 5 * (k % 6) : 5 * (k % 6) + 5] = k + 1
    write_label(tmp_path / "first.png", ids)
    status, error = run("--mask", "first.png")
    assert status == 2
    assert "25 ids" in error
    assert "max_objects" in error
    assert run("--mask", "first.png", "--max-objects", "30")[0] == 0
    assert run("--mask", "first.png", "--max-objects", "0", "--overwrite")[0] == 2


def test_palette_names_objects(run, tmp_path):
    (tmp_path / "p.json").write_text(
        json.dumps([{"name": n, "color": [k, k, 99]} for k, n in enumerate(("none", "cat", "dog"))])
    )
    assert run("--mask", "first.png", "--palette", "p.json", "--rle")[0] == 0
    (annotation,) = json.loads(Path("out/rle/001.json").read_text())["annotations"]
    assert annotation["category_name"] == "dog"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "TinyPropagator follows objects: show them with --mask"),
        (("--mask", "none.png"), "none.png does not exist"),
        (("--mask", "first.png", "--scores"), "--scores is not for TinyPropagator"),
        (("--mask", "first.png", "--size", "32", "32"), "give --resolution instead"),
        (("--mask", "later", "--start", "3"), "No mask belongs to the frames"),
    ],
)
def test_mistakes_are_found_before_any_work(run, tmp_path, options, message):
    status, error = run(*options)
    assert status == 2
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [("--mask", "first.png"), ("--resolution", "10"), ("--resize-masks",)]
)
def test_semantic_segmentation_takes_no_masks(run, options):
    status, error = run(*options, model=TinySegmentor(OffsetWindow()).eval())
    assert status == 2
    assert f"{options[0]} is for models that propagate masks; TinySegmentor gives" in error


def test_sessions_that_cannot_resize_say_so(run, monkeypatch):
    from tests.inference.tiny_propagator import TinySession

    class Rigid(TinySession):
        def __init__(self, model):
            super().__init__(model)

    model = TinyPropagator()
    monkeypatch.setattr(model, "session_type", Rigid, raising=False)
    status, error = run("--mask", "first.png", "--resolution", "10", model=model)
    assert status == 2
    assert "works at the frames' size only" in error
    assert run("--mask", "first.png", model=model)[0] == 0
