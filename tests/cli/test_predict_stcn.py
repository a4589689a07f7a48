"""`vss2 predict --mask` with STCN, untrained: files, ids and sizes; real clips where there are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import vss2
from vss2 import inference
from vss2.cli import predict
from vss2.data.image_io import read_label, write_image, write_label
from vss2.data.video_io import open_source
from vss2.data.vos_palette import DAVIS_PALETTE
from vss2.inference import GivenMasks, ResultWriter, Stopped, VideoPredictor

CONFIG = "stcn/stcn_toy"
CLIPS = os.environ.get("VSS2_CLIPS")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save(vss2.load(CONFIG, device="cpu").state_dict(), path)
    return path


def run(weights, frames, output, *options):
    words = ["--config-file", CONFIG, "--weights", str(weights), "--device", "cpu"]
    words += ["--input", str(frames), "--output", str(output), "--rle", *map(str, options)]
    assert predict.main(words) == 0
    return {path.stem: read_label(path) for path in sorted((output / "labels").iterdir())}


def assert_annotated(output, labels):
    for name, ids in labels.items():
        document = json.loads((output / "rle" / f"{name}.json").read_text())
        assert [a["category_id"] for a in document["annotations"]] == [
            int(k) for k in np.unique(ids) if k
        ]


def test_objects_come_are_corrected_and_keep_their_ids(weights, tmp_path):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (6, 6, 8, 3), np.uint8)
    for k, image in enumerate(small):
        write_image(tmp_path / f"frames/{k:02d}.png", cv2.resize(image, (64, 48)))
    first, later = np.zeros((2, 48, 64), np.uint8)
    first[8:24, 8:30], later[20:40, 30:60] = 4, 11
    write_label(tmp_path / "first.png", first)
    write_label(tmp_path / "masks/03.png", later)
    options = ("--mask", tmp_path / "first.png", "--mask", tmp_path / "masks")
    labels = run(weights, tmp_path / "frames", tmp_path / "out", *options)
    assert list(labels) == [f"{k:02d}" for k in range(6)]
    np.testing.assert_array_equal(labels["00"], first)
    np.testing.assert_array_equal(labels["03"] == 11, later == 11)
    for name, ids in labels.items():
        assert ids.shape == (48, 64)
        assert set(np.unique(ids)) <= ({0, 4} if name < "03" else {0, 4, 11})
    assert_annotated(tmp_path / "out", labels)
    half = run(weights, tmp_path / "frames", tmp_path / "half", *options, "--resolution", 24)
    assert {ids.shape for ids in half.values()} == {(48, 64)}
    assert (half["00"] != first).mean() < 0.05
    bounded = ("+model.session.max_memory_frames=2", "model.session.mem_every=1")
    assert len(run(weights, tmp_path / "frames", tmp_path / "bounded", *options, *bounded)) == 6


def test_a_stopped_run_goes_on_to_the_same_bytes(weights, tmp_path):
    model = vss2.load(CONFIG, weights=str(weights), device="cpu")
    rng = np.random.default_rng(1)
    for k in range(8):
        small = rng.integers(0, 256, (6, 8, 3), np.uint8)
        write_image(tmp_path / f"frames/{k:02d}.png", cv2.resize(small, (64, 48)))
    mask = np.zeros((48, 64), np.uint8)
    mask[8:24, 8:30] = 4
    write_label(tmp_path / "first.png", mask)

    def go(folder, **options):
        masks = GivenMasks([tmp_path / "first.png"])
        predictor = VideoPredictor(model, session={"mem_every": 2}, masks=masks)
        names = [f"object {k}" for k in range(256)]
        writer = ResultWriter(folder, names, DAVIS_PALETTE, background=0)
        return inference.run(predictor, open_source(tmp_path / "frames"), writer, **options)

    go(tmp_path / "whole")
    asked = iter([False] * 5 + [True] * 99)
    with pytest.raises(Stopped):
        go(tmp_path / "part", overlap=False, stop=lambda: next(asked))
    report = go(tmp_path / "part", resume=True)
    assert 0 < report.kept < 8
    for path in (tmp_path / "whole").rglob("*.*"):
        other = tmp_path / "part" / path.relative_to(tmp_path / "whole")
        assert path.read_bytes() == other.read_bytes(), path.name


@pytest.mark.skipif(not CLIPS, reason="VSS2_CLIPS names no folder of real clips")
@pytest.mark.parametrize(("clip", "count"), [("bike", 4), ("judo", 16)])
def test_real_clips(weights, tmp_path, clip, count):
    frames, masks = Path(CLIPS) / "images" / clip, Path(CLIPS) / "masks" / clip
    given = {path.stem: read_label(path) for path in sorted(masks.glob("*.png"))}
    options = ("--mask", masks, "--resize-masks", "--resolution", 96)
    labels = run(weights, frames, tmp_path / "out", *options)
    assert len(labels) == count
    known: set[int] = {0}
    for name, ids in labels.items():
        known |= set(np.unique(given[name]).tolist()) if name in given else set()
        assert ids.shape == (480, 854)
        assert set(np.unique(ids).tolist()) <= known
    assert len(known) == {"bike": 3, "judo": 5}[clip]
    assert_annotated(tmp_path / "out", labels)
