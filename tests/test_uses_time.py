"""Methods with a window read their references: where the target tells nothing, labels come from
them, and without them they are lost. `benchmarks/uses_time.py` asks the same of whole trainings.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
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


@pytest.mark.parametrize("name", ["mask2former_video", "themask_toy"])
def test_blocks_of_copies_answer_as_clips_of_one_frame(name: str, uses_time: ModuleType) -> None:
    torch.manual_seed(0)
    method = uses_time.METHODS[name]
    model = instantiate(apply_overrides(load_config(method.config), [*method.options]).model).eval()
    assert model.window.lag == 5
    frames = torch.randint(0, 256, (8, 3, *SIZE), dtype=torch.uint8)
    answers = list(uses_time.blind(model.new_session()).run(frames))
    assert [answer["frame_index"] for answer in answers] == list(range(8))
    for answer, frame, place in zip(answers, frames, (0, 0, 0, 1, 1, 1, 0, 1), strict=True):
        pair = list(model.new_session().run(torch.stack((frame, frame))))
        torch.testing.assert_close(answer["sem_seg"], pair[place]["sem_seg"])
    seeing = next(model.new_session().run(frames))
    assert not torch.allclose(seeing["sem_seg"], answers[0]["sem_seg"])


def test_schedules_end_with_the_steps_and_all_take_as_many(uses_time: ModuleType) -> None:
    for method in uses_time.METHODS.values():
        steps, stage = 0, method
        while stage is not None:
            cfg = apply_overrides(load_config(stage.config), [*stage.options])
            assert cfg.lr_multiplier.max_iter == cfg.train.max_iter
            steps, stage = steps + cfg.train.max_iter, stage.first
        assert steps == 600


def test_methods_that_are_compared_see_the_same_frames(uses_time: ModuleType) -> None:
    def frames(name: str) -> Any:
        method = uses_time.METHODS[name]
        loader = apply_overrides(load_config(method.config), [*method.options]).dataloader
        return loader.train.mapper.augmentations, loader.test.mapper.resize

    for name, baseline in uses_time.BASELINES.items():
        assert frames(name) == frames(baseline)
    assert set(uses_time.METHODS) == {*uses_time.BASELINES, *uses_time.BASELINES.values()}


def test_a_second_stage_starts_from_the_weights_of_the_first(
    uses_time: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(uses_time.subprocess, "run", run)
    final = uses_time.train(uses_time.METHODS["themask_toy"], 4, tmp_path, [])
    assert final == tmp_path / "model_final.pth"
    first, second = commands
    assert {"themask/themask_1f_toy", "train.seed=4", "train.max_iter=300"} <= set(first)
    assert f"train.output_dir={tmp_path / 'first'}" in first
    assert {"themask/themask_toy", "train.seed=4", f"train.output_dir={tmp_path}"} <= set(second)
    assert f"train.init_checkpoint={tmp_path / 'first' / 'model_final.pth'}" in second
