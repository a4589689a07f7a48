"""Label propagation the published way, under `benchmarks/`, gives what a session gives."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_published_propagation_gives_the_labels_of_a_session(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yardstick = importlib.import_module("sfc_session")
    monkeypatch.setattr(yardstick, "SIZE", (112, 152))
    monkeypatch.setattr(yardstick, "DIFFER", 0.0)
    model, frames = yardstick.build("fine"), yardstick.clip(7)
    session = yardstick.filled_session(model, frames[:6])
    published = yardstick.Published(model, session, frames[6], queries=50)
    soft = published.all_labels()
    assert soft.shape == (2, 14, 19)
    assert 0.01 < soft[1].mean() < 0.9
    yardstick.check_labels(model, session, published, frames[6])
    assert "0 of 17024 pixels get another label" in capsys.readouterr().out
    assert published.seconds() > 0
    assert torch.equal(published.all_labels(), soft)
