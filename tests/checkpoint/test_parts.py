"""Weights in several files, one for each part of a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vss2.checkpoint import load_weights
from vss2.cli import train_net
from vss2.config import load_config
from vss2.d2.data import DatasetCatalog
from vss2.data.datasets.toy_vos import ToyVOSWorld, load_toy_vos
from vss2.engine import check_config, complete_config
from vss2.errors import InputError
from vss2.projects.sfc import FrameEncoder

DATASET = "toy_davis_for_weights_in_parts"


def files(folder: Path) -> dict[str, Path]:
    for part in ("left", "right"):
        torch.save({"model": {"weight": torch.rand(2, 3)}}, folder / f"{part}.pth")
    return {part: folder / f"{part}.pth" for part in ("left", "right")}


def test_each_file_fills_its_part(tmp_path: Path) -> None:
    parts = files(tmp_path)
    model = nn.ModuleDict({part: nn.Linear(3, 2, bias=False) for part in parts})
    report = load_weights(model, parts, strict=True)
    assert sorted(report.loaded) == ["left.weight", "right.weight"]
    for part, file in parts.items():
        assert torch.equal(model[part].weight, torch.load(file)["model"]["weight"])
    with pytest.raises(InputError, match=r"left: .*left\.pth, .*does not fit ModuleDict whole"):
        load_weights(model, {**parts, "top": parts["left"]}, strict=True)


def test_a_missing_file_is_found_before_the_run(tmp_path: Path) -> None:
    cfg = complete_config(load_config("sfc/sfc_fused_davis"))
    cfg.train.init_checkpoint.fine = str(files(tmp_path)["left"])
    with pytest.raises(InputError, match=r"moco_v1_200ep_pretrain\.pth\.tar' does not exist"):
        check_config(cfg, training=False)


def test_evaluation_with_a_file_for_each_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSS2_DATASETS", str(tmp_path))
    world = ToyVOSWorld(1, 1, 1, 1, (48, 64), (3, 3), 16)
    DatasetCatalog.pop(DATASET, None)
    DatasetCatalog.register(DATASET, lambda: load_toy_vos("davis_val", world))
    overrides = []
    for part in ("fine", "semantic"):
        torch.save(FrameEncoder(18).state_dict(), tmp_path / f"{part}.pth")
        overrides.append(f"train.init_checkpoint.{part}={tmp_path / part}.pth")
    code = train_net.main(
        [
            *("--config-file", "sfc/sfc_fused_davis", "--eval-only", *overrides),
            "model.semantic.depth=18",
            f"dataloader.test.dataset={DATASET}",
            f"dataloader.evaluator.dataset_name={DATASET}",
            "dataloader.test.num_workers=0",
            "train.device=cpu",
            f"train.output_dir={tmp_path / 'run'}",
        ]
    )
    assert code == 0
    log = (tmp_path / "run/log.txt").read_text()
    assert f"fine: {tmp_path / 'fine.pth'}, semantic: {tmp_path / 'semantic.pth'}: loaded" in log
    assert len(list((tmp_path / "run/inference").rglob("0000?.png"))) == 3
