"""Tiny runs of the methods with a window; `main` is what two processes do of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from vss2.config import apply_overrides, load_config
from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.datasets import toy
from vss2.data.datasets.vspw import load_vspw
from vss2.engine import build_model, complete_config, do_eval, do_train, setup

CONFIGS = ("cffm/cffm_toy", "mrcfa/mrcfa_toy")
WORLD = toy.ToyWorld(num_train=3, num_val=3, size=(64, 96), train_frames=(11, 13))
OPTIONS = (
    "model.embed_dim=16",
    "dataloader.train.dataset=windowed_train",
    "dataloader.train.num_workers=0",
    "dataloader.train.mapper.augmentations.0.scale=[96,64]",
    "dataloader.train.mapper.augmentations.1.size=[64,96]",
    "dataloader.train.mapper.pad_size=[64,96]",
    "dataloader.test.dataset=windowed_val",
    "dataloader.test.num_workers=0",
    "dataloader.test.mapper.resize.scale=[96,64]",
    "dataloader.evaluator.dataset_name=windowed_val",
    "train.num_threads=1",
    "train.device=cpu",
    "train.tensorboard=false",
    "train.log_period=1",
    "train.eval_period=0",
    "train.checkpointer.period=2",
)


def register(root: Path) -> None:
    """The data sets of OPTIONS, from a toy world."""
    for split in toy.SPLITS:
        name = f"windowed_{split}"
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, lambda split=split: load_vspw(root, split))
        MetadataCatalog.get(name).set(stuff_classes=toy.STUFF_CLASSES, ignore_label=255)


def config(name: str, folder: Path, max_iter: int) -> DictConfig:
    cfg = complete_config(load_config(name))
    own = [f"train.output_dir={folder}", f"train.max_iter={max_iter}"]
    return apply_overrides(cfg, [*OPTIONS, *own])


def train(name: str, folder: Path, max_iter: int, resume: bool = False) -> dict[str, Any]:
    cfg = config(name, folder, max_iter)
    setup(cfg)
    return do_train(cfg, resume)


def evaluate(name: str, folder: Path, weights: dict[str, torch.Tensor]) -> dict[str, float]:
    cfg = config(name, folder, 1)
    setup(cfg, save=False)
    model = build_model(cfg)
    model.load_state_dict(weights)
    return do_eval(cfg, model)["sem_seg"]


def main(root: str, folder: str) -> None:
    """Train each method for two iterations and evaluate it."""
    register(Path(root))
    for number, name in enumerate(CONFIGS):
        found = train(name, Path(folder) / str(number), 2)
        if found:
            torch.save(found["sem_seg"], Path(folder) / f"{number}.pth")
