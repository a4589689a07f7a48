"""The whole house on a tiny toy world: odd videos, batch sizes, corrupt files, what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import vss2
from vss2.cli.train_net import main as train_main
from vss2.config import load_config
from vss2.d2.config import instantiate
from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.datasets import toy
from vss2.data.datasets.vspw import load_vspw
from vss2.data.image_io import read_image, read_label, write_label

CONFIG = "segformer/segformer_toy"


def resize_video(folder: Path, height: int, width: int) -> None:
    for path in sorted(folder.glob("*/*")):
        if path.suffix == ".png":
            label = read_label(path)
            write_label(path, cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST))
        else:
            image = cv2.resize(read_image(path), (width, height))
            cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four validation videos: ordinary, of one frame, of an odd size, with stray label ids."""
    made = toy.ToyWorld(num_train=3, num_val=4, size=(64, 96), val_frames=(17, 18))
    root = toy.make_toy_world(made, tmp_path_factory.mktemp("world") / "toy")
    videos = sorted((root / "data").glob("val_*"))
    for path in [*videos[1].glob("origin/*"), *videos[1].glob("mask/*")]:
        if path.stem != "00000":
            path.unlink()
    resize_video(videos[2], 61, 83)
    mask = videos[3] / "mask" / "00002.png"
    label = read_label(mask).copy()
    label[:5, :7] = 253
    write_label(mask, label)
    return root


@pytest.fixture
def dataset(world: Path) -> Any:
    names = {"odd_train": "train", "odd_val": "val"}
    for name, split in names.items():
        DatasetCatalog.register(name, lambda split=split: load_vspw(world, split))
        MetadataCatalog.get(name).set(stuff_classes=toy.STUFF_CLASSES, ignore_label=255)
    yield
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


OVERRIDES = [
    "dataloader.train.dataset=odd_train",
    "dataloader.test.dataset=odd_val",
    "dataloader.evaluator.dataset_name=odd_val",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.mapper.pad_size=[64,96]",
    "dataloader.train.mapper.augmentations.1.size=[64,96]",
    "dataloader.test.mapper.resize.scale=[96,64]",
    "train.max_iter=2",
    "lr_multiplier.max_iter=2",
    "lr_multiplier.warmup_iters=0",
    "train.device=cpu",
    "train.tensorboard=false",
]


def answers(model: Any, batch_size: int, only: str | None = None) -> dict[Any, torch.Tensor]:
    model.eval_output = "sem_seg"
    node = model.cfg.dataloader.test
    node.batch_size = batch_size
    if only is not None:
        node.dataset = only
    found = {}
    with torch.no_grad():
        for batch in instantiate(node):
            for answer in model(batch):
                found[answer["video_id"], answer["frame_index"]] = answer["sem_seg"]
    return found


def test_scores_depend_on_neither_loader_batch_nor_company(dataset: None, world: Path) -> None:
    torch.manual_seed(0)
    model: Any = vss2.load(CONFIG, overrides=OVERRIDES, device="cpu")
    one = answers(model, 1)
    assert {video for video, _ in one} == {f"val_{k:04d}" for k in range(4)}
    assert one["val_0001", 0].shape == (12, 64, 96)
    assert one["val_0002", 3].shape == (12, 61, 83)
    for batch_size in (3, 8):
        other = answers(model, batch_size)
        assert other.keys() == one.keys()
        for key, scores in other.items():
            torch.testing.assert_close(scores, one[key], rtol=0, atol=1e-5)
    lonely = [video for video in load_vspw(world, "val") if video["video_id"] == "val_0002"]
    DatasetCatalog.register("odd_lonely", lambda: lonely)
    try:
        alone = answers(model, 2, "odd_lonely")
    finally:
        DatasetCatalog.remove("odd_lonely")
    assert len(alone) == len(lonely[0]["frames"])
    for key, scores in alone.items():
        torch.testing.assert_close(scores, one[key], rtol=0, atol=1e-5)


def test_train_evaluate_and_load_back(
    dataset: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    argv = ["--config-file", CONFIG, f"train.output_dir={out}", *OVERRIDES]
    assert train_main(argv) == 0
    assert (out / "inference" / "results.json").is_file()
    model: Any = vss2.load(str(out / "config.yaml"), str(out / "model_final.pth"), device="cpu")
    saved = torch.load(out / "model_final.pth", weights_only=True)["model"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved[name]), name
    assert load_config(str(out / "config.yaml")).train.max_iter == 2


def test_a_corrupt_frame_is_named(
    dataset: None, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victims = [
        world / "data" / "train_0001" / "origin" / f"{k:05d}.jpg"
        for k in range(len(list((world / "data" / "train_0001" / "origin").iterdir())))
    ]
    whole = [path.read_bytes() for path in victims]
    try:
        for path, content in zip(victims, whole, strict=True):
            path.write_bytes(content[: len(content) // 2])
        argv = ["--config-file", CONFIG, f"train.output_dir={tmp_path / 'run'}", *OVERRIDES]
        assert train_main([*argv, "train.max_iter=8"]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert "train_0001/origin/" in error
    finally:
        for path, content in zip(victims, whole, strict=True):
            path.write_bytes(content)


def test_an_empty_video_is_named_before_training(
    dataset: None, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "data" / "empty" / "origin").mkdir(parents=True)
    (world / "data" / "empty" / "mask").mkdir()
    listing = world / "train.txt"
    before = listing.read_text()
    try:
        listing.write_text(before + "empty\n")
        argv = ["--config-file", CONFIG, f"train.output_dir={tmp_path / 'run'}", *OVERRIDES]
        assert train_main(argv) == 2
        assert "empty" in capsys.readouterr().err.strip().splitlines()[-1]
        assert not list((tmp_path / "run").glob("*.pth"))
    finally:
        listing.write_text(before)


def test_stray_ids_are_void_for_training_and_published_for_scores(dataset: None) -> None:
    from vss2.data.labels import reduce_labels, train_labels

    frame = load_vspw_frame("odd_val", "val_0003", 2)
    raw = read_label(frame["label_file"])
    assert (raw[:5, :7] == 253).all()
    assert (train_labels(raw, 12)[:5, :7] == 255).all()
    assert (reduce_labels(raw)[:5, :7] == 252).all()
    assert np.isin(train_labels(raw, 12), [*range(12), 255]).all()


def load_vspw_frame(name: str, video_id: str, index: int) -> dict[str, Any]:
    video = next(v for v in DatasetCatalog.get(name) if v["video_id"] == video_id)
    return video["frames"][index]
