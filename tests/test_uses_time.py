"""Methods with a window read their references: where the target tells nothing, labels come from
them, and without them they are lost. `benchmarks/uses_time.py` asks the same of whole trainings.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from vss2.config import apply_overrides, load_config
from vss2.d2.config import instantiate

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SIZE = (64, 96)
COLORS = torch.tensor([[220, 40, 40], [40, 220, 40], [40, 40, 220]])
STEPS, BATCH, WINDOW = 26, 3, "[-3,-2,-1,0]"


@pytest.fixture
def uses_time(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("uses_time")


def video(label: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """uint8 [T, 3, H, W] of the label's colour, whose last frame is gray; all are noisy."""
    frames = COLORS[label].view(3, 1, 1).expand(count, 3, *SIZE).float()
    frames = torch.cat((frames[:-1], torch.full((1, 3, *SIZE), 100.0)))
    return (frames + 35 * torch.rand(frames.shape, generator=generator)).to(torch.uint8)


def training_samples(generator: torch.Generator) -> list[dict[str, Any]]:
    return [
        {
            "frames": video(label, 4, generator),
            "sem_seg": torch.full((4, *SIZE), label),
            "labelled": torch.ones(4, dtype=torch.bool),
            "image_size": SIZE,
        }
        for label in torch.randperm(3, generator=generator)[:BATCH].tolist()
    ]


def items(generator: torch.Generator) -> Iterator[list[dict[str, Any]]]:
    for label in range(3):
        for index, frame in enumerate(video(label, 6, generator)):
            item = {"frame": frame, "video_id": str(label), "frame_index": index}
            ends = {"first_frame": index == 0, "last_frame": index == 5}
            yield [item | ends | {"height": SIZE[0], "width": SIZE[1]}]


@pytest.mark.parametrize("name", ["cffm/cffm_toy", "mrcfa/mrcfa_toy"])
def test_references_tell_what_a_blank_target_does_not(name: str, uses_time: ModuleType) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    cfg = load_config(name)
    apply_overrides(cfg, ["model.num_classes=3", "model.embed_dim=32", f"model.window={WINDOW}"])
    model = instantiate(cfg.model).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        sum(model(training_samples(generator)).values()).backward()
        optimizer.step()
    model.eval()
    right = {}
    for copies in (False, True):
        found = uses_time.predictions(model, items(torch.Generator().manual_seed(1)), copies)
        assert {name: len(frames) for name, frames in found.items()} == {"0": 6, "1": 6, "2": 6}
        right[copies] = np.mean([np.mean(found[str(k)][5] == k) for k in range(3)])
    assert right[False] > 0.9
    assert right[True] < 0.6
