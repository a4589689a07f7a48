"""The yardstick of THE-Mask computes what vss2 computes, only in the published way."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_published_themask_gives_the_scores_and_labels_of_a_clip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yardstick = importlib.import_module("themask_session")
    published = importlib.import_module("published_themask")
    model = yardstick.build("themask/themask_mit_b0_vspw")
    frames = yardstick.moving_frames(2, (64, 96))
    with torch.no_grad():
        scores = published.published_scores(model, frames)
        torch.testing.assert_close(scores, model.predict_clip(frames), rtol=0, atol=1e-4)
    assert yardstick.check_labels(model, frames, (60, 95)) > 1
