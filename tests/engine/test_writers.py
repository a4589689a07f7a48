from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from vss2.config import get_config
from vss2.d2.utils import EventStorage
from vss2.engine.train import build_model
from vss2.engine.writers import build_writers
from vss2.errors import InputError


class FakeRun:
    def __init__(self, run_id: str):
        self.id = run_id
        self.logged: list[tuple[int, dict]] = []
        self.finished = False

    def log(self, values: dict, step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def config(**train):
    from omegaconf import OmegaConf

    cfg = OmegaConf.create({"train": get_config("common/train.py").train})
    cfg.train.tensorboard = False
    for key, value in train.items():
        OmegaConf.update(cfg.train, key, value)
    return cfg


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    runs: list[FakeRun] = []
    module = types.ModuleType("wandb")

    def init(**options) -> FakeRun:
        runs.append(FakeRun(options["id"] or "fresh"))
        runs[-1].options = options
        return runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_wandb_gets_each_iteration_once_and_a_resume_goes_on(
    wandb: list[FakeRun], tmp_path: Path
) -> None:
    cfg = config(**{"wandb.enabled": True})
    writer = build_writers(cfg, tmp_path)[-1]
    with EventStorage(3) as storage:
        storage.put_scalar("total_loss", 2.0)
        writer.write()
        writer.write()
        storage.step()
        storage.put_scalar("total_loss", 4.0)
        writer.write()
    writer.close()
    assert [step for step, _ in wandb[0].logged] == [3, 4]
    assert wandb[0].logged[0][1] == {"total_loss": 2.0}
    assert wandb[0].finished
    assert wandb[0].options["project"] == "vss2"
    build_writers(cfg, tmp_path)
    assert wandb[1].options["id"] == "fresh"


def test_a_missing_package_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with caplog.at_level("WARNING", "vss2"):
        writers = build_writers(config(**{"wandb.enabled": True}), tmp_path)
    assert len(writers) == 2
    assert "wandb" in caplog.text


class Compilable(nn.Module):
    compile_targets = ("part",)

    def __init__(self, targets: bool = True):
        super().__init__()
        self.part = nn.Linear(2, 2)
        if not targets:
            self.compile_targets = ()


def test_declared_parts_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from vss2.d2.config import LazyCall as L

    seen = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: seen.append((self, options)))
    cfg = config(**{"device": "cpu", "compile.enabled": True, "compile.mode": "max-autotune"})
    cfg.model = L(Compilable)()
    model = build_model(cfg)
    (target, options) = seen[0]
    assert target is model.part
    assert options["mode"] == "max-autotune"
    assert all("_orig_mod" not in name for name in model.state_dict())
    assert torch.equal(model.part.weight, model.state_dict()["part.weight"])
    cfg.model = L(Compilable)(targets=False)
    with pytest.raises(InputError, match="names no compile_targets"):
        build_model(cfg)
