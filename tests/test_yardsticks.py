"""The yardsticks under `benchmarks/` compute what vss2 computes, only in the published way."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from vss2.evaluation import score_vss

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_published_segformer_gives_the_labels_of_a_session(load) -> None:
    yardstick, published = load("segformer_session"), load("published_segformer")
    model = yardstick.build("b0")
    frame = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    labels, probabilities = published.published_labels(model, frame, (60, 95))
    ours = model.new_session().step(frame, output_size=(60, 95), labels_only=True)["labels"]
    best = probabilities.topk(2, dim=0).values
    clear = best[0] - best[1] > yardstick.TIE
    assert clear.float().mean() > 0.99
    assert torch.equal(ours[clear], labels[clear].to(torch.uint8))
    assert len(labels.unique()) > 5


@pytest.mark.parametrize("size", ["b0", "b1"])
@pytest.mark.parametrize("method", ["cffm", "mrcfa"])
def test_published_windows_give_the_labels_of_a_session(load, method: str, size: str) -> None:
    yardstick, published = load(f"{method}_session"), load(f"published_{method}")
    shared = load("window_session")
    model = yardstick.build_size(size)
    frames = shared.moving_frames(10, (64, 96))
    clip = frames[[0, 3, 6, 9]]
    with torch.no_grad():
        scores = published.published_scores(model, clip)
    ours = model.predict_clip(clip)
    assert (scores - ours).abs().max() < 1e-5 * ours.abs().max()
    assert (ours - model.predict_clip(clip[-1:])).abs().max() > 1e-2 * ours.abs().max()
    assert shared.check_labels(model, published.published_labels, frames, (60, 95)) > 5


def test_plain_metrics_script_gives_the_scores(load) -> None:
    yardstick = load("metrics")
    raw, predictions = yardstick.video()
    raw, predictions = raw[:20, :40, :60].copy(), predictions[:20, :40, :60].copy()
    raw[:, :4] = 255
    plain = yardstick.plain_script(raw, predictions)
    ours = score_vss([("video", raw, predictions)], yardstick.NUM_CLASSES)
    assert {"mIoU", "aAcc", "mIoU_e", "fwIoU", "VC8", "VC16"} == set(plain)
    for name, value in plain.items():
        assert value == pytest.approx(ours[name], abs=1e-12), name


def test_both_sample_pipelines_run(load, tmp_path: Path) -> None:
    yardstick = load("training_samples")
    videos = yardstick.make_videos(tmp_path, videos=1, frames=10)
    frames, masks = yardstick.PublishedDataset(videos, 1)[0]
    assert frames.shape == (4, 3, 480, 480)
    assert masks.shape == (4, 1, 480, 480)
    assert set(np.unique(masks)) <= {*range(124), 255}
    mapper = yardstick.instantiate(
        yardstick.get_config("common/data/vspw.py").dataloader.train.mapper
    )
    assert yardstick.ours(videos, mapper, batches=1, workers=0) == yardstick.BATCH


def test_quotients_are_taken_round_by_round(load) -> None:
    interleaved = load("interleaved")
    calls: list[str] = []
    times = interleaved.interleave({n: lambda n=n: calls.append(n) for n in "ab"}, 3)
    assert calls == ["a", "b", *"ab", *"ba", *"ab"]
    assert all(len(values) == 3 for values in times.values())
    found = interleaved.compare({"a": [2.0, 6.0, 2.0], "b": [1.0, 3.0, 1.0]}, "a", "b")
    assert found == {"ratio": 2.0, "p10": 2.0, "p90": 2.0, "rounds": 3}
