"""The toy config through the training tool: train, evaluate, resume, load back."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import vss2
from vss2.cli.train_net import main as train_main
from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.datasets import toy
from vss2.data.datasets.vspw import load_vspw

CONFIG = "mask2former/mask2former_toy"
OVERRIDES = [
    "dataloader.train.dataset=masks_train",
    "dataloader.test.dataset=masks_val",
    "dataloader.evaluator.dataset_name=masks_val",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.mapper.pad_size=[64,96]",
    "dataloader.train.mapper.augmentations.1.size=[64,96]",
    "dataloader.test.mapper.resize.scale=[96,64]",
    "model.hidden_dim=32",
    "train.max_iter=3",
    "lr_multiplier.max_iter=3",
    "lr_multiplier.warmup_iters=0",
    "train.checkpointer.period=2",
    "train.eval_period=0",
    "train.num_threads=1",
    "train.device=cpu",
    "train.tensorboard=false",
]


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name in ("vss2", "fvcore"):
        logging.getLogger(name).handlers.clear()


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    made = toy.ToyWorld(num_train=2, num_val=1, size=(64, 96), val_frames=(17, 17))
    root = toy.make_toy_world(made, tmp_path_factory.mktemp("masks") / "toy")
    names = {"masks_train": "train", "masks_val": "val"}
    for name, split in names.items():
        DatasetCatalog.register(name, lambda split=split: load_vspw(root, split))
        MetadataCatalog.get(name).set(stuff_classes=toy.STUFF_CLASSES, ignore_label=255)
    yield
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def train(folder: Path, *arguments: str) -> dict[str, torch.Tensor]:
    """A run of the tool; returns the weights that it leaves."""
    argv = ["--config-file", CONFIG, f"train.output_dir={folder}", *OVERRIDES, *arguments]
    assert train_main(argv) == 0
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


@pytest.mark.parametrize(
    "options",
    [
        ["train.amp.enabled=true", "train.amp.dtype=bf16"],
        ["model.clip_length=2", "dataloader.train.mapper.clip_sampler.offsets=[-3,0]"],
    ],
    ids=["image-bf16", "video"],
)
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, options: list[str]) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = train(whole, *options)
    assert (whole / "inference" / "results.json").is_file()
    cut.mkdir()
    shutil.copy(whole / "model_0000001.pth", cut)
    (cut / "last_checkpoint").write_text("model_0000001.pth")
    found = train(cut, "--resume", *options)
    start = torch.load(cut / "model_0000001.pth", weights_only=True)["model"]
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    assert any(not torch.equal(value, start[name]) for name, value in expected.items())
    model = vss2.load(str(whole / "config.yaml"), str(whole / "model_final.pth"), device="cpu")
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
