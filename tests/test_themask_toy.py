"""THE-Mask by the command line: both stages train, evaluate, resume and stream on a toy world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vss2.cli.predict import main as predict
from vss2.cli.train_net import main as train
from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.datasets import toy
from vss2.data.datasets.vspw import load_vspw
from vss2.data.image_io import read_label

OVERRIDES = [
    "dataloader.train.dataset=themask_tiny_train",
    "dataloader.test.dataset=themask_tiny_val",
    "dataloader.evaluator.dataset_name=themask_tiny_val",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "dataloader.train.total_batch_size=1",
    "dataloader.train.mapper.pad_size=[64,96]",
    "dataloader.train.mapper.augmentations.1.size=[64,96]",
    "dataloader.test.mapper.resize.scale=[96,64]",
    "model.hidden_dim=32",
    "model.encoder_layers=1",
    "model.criterion.matcher.num_points=64",
    "model.criterion.points.num_points=64",
    "lr_multiplier.warmup_iters=0",
    "train.device=cpu",
    "train.tensorboard=false",
    "train.eval_period=0",
    "train.log_period=1",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = toy.ToyWorld(num_train=2, num_val=2, size=(64, 96), val_frames=(7, 8))
    root = toy.make_toy_world(made, tmp_path_factory.mktemp("world") / "toy")
    names = {"themask_tiny_train": "train", "themask_tiny_val": "val"}
    for name, split in names.items():
        DatasetCatalog.register(name, lambda split=split: load_vspw(root, split))
        MetadataCatalog.get(name).set(stuff_classes=toy.STUFF_CLASSES, ignore_label=255)
    yield root
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def run(config: str, out: Path, iterations: int, *options: str) -> dict[int, dict[str, float]]:
    """Train; the logged numbers of every iteration."""
    arguments = [f"train.output_dir={out}", f"train.max_iter={iterations}", *OVERRIDES, *options]
    assert train(["--config-file", config, *arguments]) == 0
    lines = (out / "metrics.json").read_text().splitlines()
    return {row["iteration"]: row for row in map(json.loads, lines) if "total_loss" in row}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def test_both_stages_train_resume_evaluate_and_stream(world: Path, tmp_path: Path) -> None:
    options = ("model.warmup_iters=2", "train.checkpointer.period=1", "lr_multiplier.max_iter=4")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    rows = run("themask/themask_1f_toy", whole, 4, *options)
    assert [("r0_loss_mask" in rows[i], "loss_mask" in rows[i]) for i in range(4)] == [
        (False, True),
        (False, True),
        (True, False),
        (True, False),
    ]
    assert (whole / "inference" / "results.json").is_file()

    # A run that stopped in the middle of the second loss goes on with it, to the last bit.
    parts.mkdir()
    (parts / "model_0000002.pth").write_bytes((whole / "model_0000002.pth").read_bytes())
    (parts / "last_checkpoint").write_text("model_0000002.pth")
    rows = run("themask/themask_1f_toy", parts, 4, *options, "--resume")
    assert {i: "r0_loss_mask" in row for i, row in rows.items()} == {3: True}
    expected = weights(whole / "model_final.pth")
    for name, value in weights(parts / "model_final.pth").items():
        assert torch.equal(value, expected[name]), name

    second = tmp_path / "second"
    start = f"train.init_checkpoint={whole / 'model_final.pth'}"
    rows = run("themask/themask_toy", second, 2, start, "lr_multiplier.max_iter=2")
    assert "r1_loss_dice_unmatched_0_aux" in rows[1]
    trained = weights(second / "model_final.pth")
    for name, value in expected.items():
        if ".predictor." not in name:
            assert torch.equal(trained[name], value), name
    results = json.loads((second / "inference" / "results.json").read_text())
    assert "mIoU" in json.dumps(results)

    video = world / "data" / "val_0001" / "origin"
    for name, causal in (("blocks", "false"), ("causal", "true")):
        out = tmp_path / name
        code = predict(
            ["--config-file", str(second / "config.yaml")]
            + ["--weights", str(second / "model_final.pth"), "--input", str(video)]
            + ["--output", str(out), f"model.causal={causal}"]
        )
        assert code == 0
        labels = sorted((out / "labels").rglob("*.png"))
        assert [path.stem for path in labels] == sorted(path.stem for path in video.iterdir())
        assert read_label(labels[0]).max() < 12
