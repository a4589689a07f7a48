"""Options of `vss2 predict` beside the plain run, on a model that is small but real."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

import vss2
from tests.modeling.tiny import TinySegmentor
from vss2.cli import predict
from vss2.d2.config import LazyCall as L
from vss2.data import live_sources
from vss2.data.datasets.toy import STUFF_CLASSES
from vss2.data.image_io import read_image, read_label, write_image
from vss2.data.transforms import TestResize
from vss2.data.video_io import VideoWriter, open_source
from vss2.modeling.window import PUBLISHED_START_TABLE, OffsetWindow

COUNT = 12


class Model(TinySegmentor):
    """Notes the sizes that it sees; Ctrl-C comes while it sees frame `interrupt_at`."""

    def __init__(self, num_classes=12):
        super().__init__(OffsetWindow((-9, -6, -3, 0), PUBLISHED_START_TABLE), num_classes)
        self.cfg = OmegaConf.create(flags={"allow_objects": True})
        self.cfg.model = {"num_classes": num_classes}
        self.cfg.dataloader = {"test": {"dataset": "toy_val", "mapper": {}}}
        self.cfg.dataloader.test.mapper.resize = L(TestResize)(scale=[64, 64], size_divisor=32)
        self.sizes, self.interrupt_at = set(), None

    def encode(self, images):
        self.sizes.add(tuple(images.shape[-2:]))
        if self.encoded == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().encode(images)


@pytest.fixture
def model(monkeypatch, tmp_path):
    """The model that the tool loads; `model.changes` is applied to its config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").write_bytes(b"weights")
    models = []

    def load(config, weights=None, overrides=(), device=None):
        models.append(Model())
        models[-1].interrupt_at = load.interrupt_at
        for override in overrides:
            key, value = override.split("=")
            OmegaConf.update(models[-1].cfg, key, value, force_add=True)
        return models[-1]

    load.interrupt_at, load.models = None, models
    monkeypatch.setattr(vss2, "load", load)
    return load


@pytest.fixture
def frames(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(COUNT):
        write_image(
            tmp_path / "frames" / f"{k:05d}.jpg", rng.integers(0, 256, (45, 61, 3), np.uint8)
        )
    return tmp_path / "frames"


def _args(source, output, *more):
    return [
        *("--config-file", "segformer/segformer_toy", "--weights", "w.pth"),
        *("--input", str(source), "--output", str(output), *more),
    ]


def _labels(folder):
    return {p.stem: read_label(p).tobytes() for p in sorted((folder / "labels").iterdir())}


def _files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _fails(capsys, argv) -> str:
    assert predict.main(argv) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


def test_every_form_of_output(model, frames, tmp_path, capsys):
    output = tmp_path / "out"
    more = ("--rle", "--scores", "--scores-stride", "2", "--side-by-side")
    assert predict.main(_args(frames, output, *more)) == 0
    assert sorted(p.name for p in output.iterdir()) == sorted(
        [*("labels", "rle", "scores", "overlay.mp4", "side_by_side.mp4"),
         *("contact_sheet.png", "predict.json")]
    )  # fmt: skip
    labels = read_label(output / "labels" / "00007.png")
    with np.load(output / "scores" / "00007.npz") as file:
        scores = file["scores"]
    assert (scores.dtype, scores.shape) == (np.float16, (12, 23, 31))
    chosen = np.take_along_axis(scores, labels[None, ::2, ::2].astype(int), 0)[0]
    assert (chosen >= scores.max(0) - 0.01).all()
    document = json.loads((output / "rle" / "00007.json").read_text())
    assert sum(a["area"] for a in document["annotations"]) == labels.size
    assert document["annotations"][0]["category_name"] in STUFF_CLASSES
    assert open_source(output / "side_by_side.mp4").num_frames == COUNT
    assert "the network waited" in capsys.readouterr().out


def test_chosen_frames_have_the_labels_of_a_run_over_all_from_the_start(model, frames, tmp_path):
    assert predict.main(_args(frames, tmp_path / "a", "--start", "1")) == 0
    chosen = ("--start", "1", "--end", "11", "--every", "3")
    assert predict.main(_args(frames, tmp_path / "b", *chosen)) == 0
    part, whole = _labels(tmp_path / "b"), _labels(tmp_path / "a")
    assert list(part) == ["00001", "00004", "00007", "00010"]
    assert all(part[name] == whole[name] for name in part)


def test_every_keeps_a_videos_speed(model, tmp_path):
    with VideoWriter(tmp_path / "v.mp4", fps=12) as video:
        for k in range(9):
            video.write(np.full((48, 64, 3), 20 * k, np.uint8))
    assert predict.main(_args(tmp_path / "v.mp4", tmp_path / "out", "--every", "3")) == 0
    film = open_source(tmp_path / "out" / "overlay.mp4")
    assert (film.fps, film.num_frames) == (4.0, 3)


def test_size_is_what_the_network_sees_and_results_keep_theirs(model, frames, tmp_path):
    assert predict.main(_args(frames, tmp_path / "a", "--size", "128", "96", "--end", "2")) == 0
    assert predict.main(_args(frames, tmp_path / "b", "--size", "96", "128", "--end", "2")) == 0
    # 45x61 fits the box as 94x128, and 94 becomes a multiple of 32.
    assert [m.sizes for m in model.models] == [{(96, 128)}] * 2
    assert read_label(tmp_path / "a" / "labels" / "00000.png").shape == (45, 61)


def test_palette_file_names_and_colours(model, frames, tmp_path, capsys):
    classes = [{"name": f"thing {k}", "color": [k, 2 * k, 200]} for k in range(12)]
    (tmp_path / "p.json").write_text(json.dumps(classes))
    assert predict.main(_args(frames, tmp_path / "a", "--palette", "p.json", "--rle")) == 0
    document = json.loads((tmp_path / "a" / "rle" / "00000.json").read_text())
    entry = document["annotations"][0]
    assert entry["category_name"] == f"thing {entry['category_id']}"
    (tmp_path / "p.json").write_text(json.dumps(classes[:5]))
    error = _fails(capsys, _args(frames, tmp_path / "b", "--palette", "p.json"))
    assert "12 classes, but the palette p.json has 5 entries" in error


def _interrupted(model, argv, at, capsys):
    model.interrupt_at = at
    assert predict.main(argv) == 130
    model.interrupt_at = None
    return capsys.readouterr().err


def test_ctrl_c_and_resume_give_the_run_that_was_never_stopped(model, frames, tmp_path, capsys):
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert predict.main(_args(frames, whole, "--rle")) == 0
    for at in (2, 3):
        more = ("--resume",) if output.exists() else ()
        error = _interrupted(model, _args(frames, output, "--rle", *more), at, capsys)
        assert "the same command with --resume goes on" in error.splitlines()[-1]
        assert {p.name for p in output.iterdir()} == {"labels", "rle", "predict.json"}
    assert 3 <= len(_labels(output)) < COUNT
    assert "--resume" in _fails(capsys, _args(frames, output, "--rle"))
    assert predict.main(_args(frames, output, "--rle", "--resume")) == 0
    assert "of them before" in capsys.readouterr().out
    assert _files(output).keys() == _files(whole).keys()
    for name, content in _files(whole).items():
        assert content == _files(output)[name], name
    assert predict.main(_args(frames, output, "--rle", "--resume")) == 0
    assert f"is complete: {COUNT} frames" in capsys.readouterr().out


def test_resume_refuses_another_run(model, frames, tmp_path, capsys):
    output = tmp_path / "out"
    _interrupted(model, _args(frames, output), 4, capsys)

    def refused(*more, source=frames):
        return _fails(capsys, _args(source, output, "--resume", *more))

    before = _files(output)
    assert "options every was 1, is 2" in refused("--every", "2")
    assert "options alpha was 0.5, is 0.25" in refused("--alpha", "0.25")
    assert "another outputs" in refused("--rle", "--side-by-side")
    assert "config model.depth was null" in refused("model.depth=3")
    assert "resize.scale was [64, 64], is [96, 64]" in refused("--size", "64", "96")
    (tmp_path / "w.pth").write_bytes(b"other weights")
    assert "another weights" in refused()
    (tmp_path / "w.pth").write_bytes(b"weights")
    write_image(frames / "00003.jpg", np.zeros((45, 61, 3), np.uint8))
    assert "another input digest" in refused()
    assert "choose one" in refused("--overwrite")
    assert _files(output) == before


def test_stop_before_the_first_result_leaves_nothing(model, frames, tmp_path, capsys):
    argv = _args(frames, tmp_path / "out", "--overwrite")
    error = _interrupted(model, argv, 0, capsys)
    assert "--resume instead of --overwrite" in error
    # The frame that the network is at may still be answered.
    names = {p.name for p in (tmp_path / "out").rglob("*")}
    assert names in (set(), {"labels", "00000.png", "predict.json"})


class Pipe:
    """Standard input that is a pipe."""

    def __init__(self, monkeypatch, data: bytes):
        read, write = os.pipe()
        os.write(write, data)
        os.close(write)
        self.descriptor = read
        monkeypatch.setattr("sys.stdin", self)

    def fileno(self) -> int:
        return self.descriptor


def test_standard_input(model, frames, tmp_path, monkeypatch, capsys):
    assert predict.main(_args(frames, tmp_path / "folder")) == 0
    files = sorted(frames.iterdir())
    Pipe(monkeypatch, b"".join(p.read_bytes() for p in files))
    assert predict.main(_args("-", tmp_path / "images")) == 0
    raw = b"".join(read_image(p).tobytes() for p in files[:5])
    Pipe(monkeypatch, raw)
    assert predict.main(_args("-", tmp_path / "raw", "--raw", "45", "61", "--every", "2")) == 0
    expected = list(_labels(tmp_path / "folder").values())
    assert list(_labels(tmp_path / "images").values()) == expected
    assert list(_labels(tmp_path / "raw")) == ["000000", "000002", "000004"]
    assert list(_labels(tmp_path / "raw").values()) == expected[:5:2]
    error = _fails(capsys, _args("-", tmp_path / "new", "--resume"))
    assert "standard input cannot be read a second time" in error
    Pipe(monkeypatch, raw)
    assert "unfinished" not in _fails(capsys, _args("-", tmp_path / "raw", "--raw", "45", "61"))


class Camera:
    """cv2.VideoCapture of a camera that never ends."""

    def __init__(self, number):
        self.index = 0

    def isOpened(self):
        return True

    def get(self, prop):
        return 20.0

    def read(self):
        self.index += 1
        return True, np.full((48, 64, 3), self.index % 200, np.uint8)

    def release(self):
        pass


def test_a_camera_ends_with_ctrl_c_or_at_the_end(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(live_sources.cv2, "VideoCapture", Camera)
    assert predict.main(_args("camera:0", tmp_path / "a", "--end", "7")) == 0
    assert len(_labels(tmp_path / "a")) == 7
    assert open_source(tmp_path / "a" / "overlay.mp4").fps == 20
    model.interrupt_at = 10
    assert predict.main(_args("camera:0", tmp_path / "b")) == 0
    assert "11 frames of camera:0" in capsys.readouterr().out
    assert open_source(tmp_path / "b" / "overlay.mp4").num_frames == 11


def test_options_that_cannot_be(model, frames, tmp_path, capsys):
    for message, *more in (
        ("0 <= start < end", "--start", "5", "--end", "5"),
        ("every >= 1", "--every", "0"),
        ("none is left from frame 12", "--start", "12"),
        ("comes with --scores", "--scores-stride", "4"),
        ("--size must be positive", "--size", "0", "5"),
        ("standard input ('-') only", "--raw", "4", "4"),
    ):
        assert message in _fails(capsys, _args(frames, tmp_path / "out", *more))
    assert model.models == []
    assert not (tmp_path / "out").exists()


def test_a_size_needs_a_resize(model, frames, tmp_path, capsys):
    no_resize = "dataloader.test.mapper.resize=null"
    error = _fails(capsys, _args(frames, tmp_path / "out", "--size", "64", "64", no_resize))
    assert "has no scale to set" in error


def test_the_example_of_the_help_is_a_command_of_this_tool():
    text = predict.EPILOG.split("vss2 predict ")[1].replace("\\\n", " ")
    args = predict.build_parser().parse_intermixed_args(text.split())
    assert args.overwrite
    assert predict.EPILOG.count(args.output.split("/")[-1]) == 2


def test_every_option_is_described():
    page = (Path(__file__).parents[2] / "docs" / "PREDICT.md").read_text()
    options = [o for action in predict.build_parser()._actions for o in action.option_strings]
    missing = [o for o in options if o not in page and o not in ("-h", "--help")]
    assert len(options) > 15
    assert missing == []
