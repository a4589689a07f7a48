from __future__ import annotations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import vss2
from vss2.cli import predict
from vss2.d2.config import LazyCall as L
from vss2.data.image_io import read_label, write_image
from vss2.data.transforms import TestResize
from vss2.data.video_io import VideoWriter, open_source


class Model(nn.Module):
    """Splits each frame in a left half of class 1 and a right half of class 4."""

    device = torch.device("cpu")

    def __init__(self, num_classes=12):
        super().__init__()
        self.num_classes, self.index, self.sizes = num_classes, 0, set()
        self.cfg = OmegaConf.create(flags={"allow_objects": True})
        self.cfg.model = {"num_classes": num_classes}
        self.cfg.dataloader = {"test": {"dataset": "toy_val", "mapper": {}}}
        self.cfg.dataloader.test.mapper.resize = L(TestResize)(scale=[64, 64], size_divisor=32)

    def new_session(self):
        self.index = 0
        return self

    def step(self, frame, output_size, labels_only):
        assert labels_only
        self.sizes.add(tuple(frame.shape))
        labels = torch.full(output_size, 1, dtype=torch.uint8)
        labels[:, output_size[1] // 2 :] = 4
        self.index += 1
        return {"labels": labels, "frame_index": self.index - 1}

    def finish(self):
        return iter(())


@pytest.fixture
def model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").write_bytes(b"weights")
    model = Model()
    model.loaded_with = []

    def load(config, weights=None, overrides=(), device=None):
        model.loaded_with.append((config, weights, list(overrides), device))
        return model

    monkeypatch.setattr(vss2, "load", load)
    return model


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / "frames"
    rng = np.random.default_rng(0)
    for k in range(4):
        write_image(folder / f"{k:05d}.jpg", rng.integers(0, 256, (45, 61, 3), np.uint8))
    return folder


def _args(source, output, *more):
    return [
        *("--config-file", "segformer/segformer_toy", "--weights", "w.pth"),
        *("--input", str(source), "--output", str(output), *more),
    ]


def test_folder_in_results_out(model, frames, tmp_path, capsys):
    output = tmp_path / "out"
    assert predict.main(_args(frames, output, "--device", "cpu", "model.x=1", "model.y=2")) == 0
    assert model.loaded_with == [
        ("segformer/segformer_toy", "w.pth", ["model.x=1", "model.y=2"], "cpu")
    ]
    assert model.sizes == {(3, 64, 64)}
    assert sorted(p.name for p in (output / "labels").iterdir()) == [
        f"{k:05d}.png" for k in range(4)
    ]
    labels = read_label(output / "labels" / "00002.png")
    assert labels.shape == (45, 61)
    assert set(np.unique(labels)) == {1, 4}
    video = open_source(output / "overlay.mp4")
    assert (video.num_frames, video.fps) == (4, predict.DEFAULT_FPS)
    printed = capsys.readouterr()
    assert "4 frames" in printed.out
    for name in ("labels", "overlay.mp4", "contact_sheet.png"):
        assert str(output / name) in printed.out
    assert "4/4" in printed.err


def test_video_in_keeps_its_rate_unless_told(model, tmp_path):
    with VideoWriter(tmp_path / "v.mp4", fps=7) as writer:
        for k in range(3):
            writer.write(np.full((32, 48, 3), 50 * k, np.uint8))
    assert predict.main(_args(tmp_path / "v.mp4", tmp_path / "a")) == 0
    assert open_source(tmp_path / "a" / "overlay.mp4").fps == 7
    assert predict.main(_args(tmp_path / "v.mp4", tmp_path / "b", "--fps", "20")) == 0
    assert open_source(tmp_path / "b" / "overlay.mp4").fps == 20
    assert len(list((tmp_path / "b" / "labels").iterdir())) == 3


def _fails(capsys, argv) -> str:
    assert predict.main(argv) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


def test_mistakes_are_one_line(model, frames, tmp_path, capsys):
    output = tmp_path / "out"
    assert "does not exist" in _fails(capsys, _args(tmp_path / "no", output))
    assert "--alpha" in _fails(capsys, _args(frames, output, "--alpha", "2"))
    assert "--fps" in _fails(capsys, _args(frames, output, "--fps", "-1"))
    assert model.loaded_with == []  # found before the model is built
    model.num_classes = 5
    assert "'toy_val' names 12" in _fails(capsys, _args(frames, output))
    assert not output.exists()


def test_results_of_another_run_are_kept(model, frames, tmp_path, capsys):
    assert predict.main(_args(frames, tmp_path / "out")) == 0
    assert "--overwrite" in _fails(capsys, _args(frames, tmp_path / "out"))
    assert predict.main(_args(frames, tmp_path / "out", "--overwrite")) == 0


def test_a_corrupt_frame_is_named_and_leaves_no_video(model, frames, tmp_path, capsys):
    (frames / "00002.jpg").write_bytes(b"\xff\xd8 cut")
    assert "00002.jpg" in _fails(capsys, _args(frames, tmp_path / "out"))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"labels", "predict.json"}
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 2
    (frames / "00000.jpg").write_bytes(b"\xff\xd8 cut")
    assert "00000.jpg" in _fails(capsys, _args(frames, tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_weights_are_required(frames, tmp_path, capsys):
    argv = _args(frames, tmp_path / "out")
    del argv[2:4]
    with pytest.raises(SystemExit) as stop:
        predict.main(argv)
    assert stop.value.code == 2
    assert "--weights" in capsys.readouterr().err


def test_classes_without_names_get_numbers(model):
    model.cfg.dataloader.test.dataset = ["a_set_without_metadata"]
    names, colors = predict.class_names_and_colors(model)
    assert names[3] == "class 3"
    assert len(names) == len(colors) == 12
