"""CFFM and MRCFA in the engine: a resume in the same bits, and two processes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from vss2.checkpoint import read_checkpoint
from vss2.data.datasets.toy import make_toy_world
from vss2.engine import launch

from .conftest import assert_same
from .window_methods import CONFIGS, WORLD, evaluate, main, register, train


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_toy_world(WORLD, tmp_path_factory.mktemp("windowed") / "toy")
    register(root)
    return root


@pytest.mark.parametrize("name", CONFIGS)
def test_a_resume_ends_in_the_same_bits(name: str, world: Path, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(name, straight, 4)
    # What a kill after the third iteration leaves.
    killed.mkdir()
    shutil.copy(straight / "model_0000001.pth", killed)
    (killed / "last_checkpoint").write_text("model_0000001.pth")
    results = train(name, killed, 4, resume=True)
    whole, resumed = (read_checkpoint(f / "model_final.pth") for f in (straight, killed))
    for part in ("model", "trainer", "data", "random"):
        assert_same(whole[part], resumed[part], part)
    half = read_checkpoint(killed / "model_0000001.pth")["model"]
    assert any(not torch.equal(half[key], value) for key, value in whole["model"].items())
    assert results["sem_seg"]["aAcc"] > 0


def test_two_processes_train_and_score_as_one_does(
    world: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launch(main, (str(world), str(tmp_path)), num_gpus=2)
    for number, name in enumerate(CONFIGS):
        state = read_checkpoint(tmp_path / str(number) / "model_final.pth")
        assert state["data"]["batches"] == 2
        assert len(state["random"]["ranks"]) == 2
        alone = evaluate(name, tmp_path / "one", state["model"])
        together = torch.load(tmp_path / f"{number}.pth", weights_only=False)
        assert together == pytest.approx(alone, rel=0, abs=0, nan_ok=True)
