"""The published recipes and protocols as the configs have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vss2.config import load_config
from vss2.d2.config import instantiate
from vss2.data.image_io import write_image, write_label
from vss2.data.vos_palette import DAVIS_PALETTE
from vss2.engine import check_config, complete_config
from vss2.projects.stcn.losses import BootstrappedCrossEntropy
from vss2.testing.fixtures import load_fixture

STAGES = (0, 1, 2, 3)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_the_published_schedule(stage):
    """Learning rate, gap and share of pixels at the recorded iterations of the published runs."""
    description, arrays = load_fixture("stcn_load")
    run = description["config"]["schedule"][f"stage_{stage}"]
    cfg = load_config(f"stcn/stcn_stage{stage}")
    batch = run["batch_per_process"] * run["processes"]
    assert cfg.dataloader.train.total_batch_size == batch
    assert cfg.train.max_iter == run["iterations"]
    assert cfg.model.single_object == run["single_object"]
    schedule = instantiate(cfg.lr_multiplier)
    loss = BootstrappedCrossEntropy(
        cfg.model.bootstrap_start, cfg.model.bootstrap_end, cfg.model.bootstrap_fraction
    )
    curriculum = None
    if stage:
        curriculum = instantiate(cfg.dataloader.train.mapper.clip_sampler.curriculum)
    for iteration, _, rate, gap, _, kept in arrays[f"schedule/stage_{stage}"]:
        where = iteration / run["iterations"]
        assert cfg.optimizer.lr * schedule(where) == pytest.approx(rate, rel=1e-9)
        assert loss.kept(int(iteration)) == pytest.approx(kept, rel=1e-9)
        if curriculum is not None:
            assert curriculum(int(iteration) * batch) == gap


def test_the_optimizer_is_the_published_one():
    cfg = load_config("stcn/stcn_stage2")
    optimizer = cfg.optimizer
    assert optimizer["_target_"] is torch.optim.Adam
    assert (optimizer.lr, list(optimizer.betas)) == (1e-5, [0.9, 0.999])
    assert (optimizer.eps, optimizer.weight_decay) == (1e-8, 1e-7)
    assert cfg.model.freeze_norm
    assert (cfg.train.amp.enabled, cfg.train.amp.dtype) == (True, "fp16")
    assert not cfg.train.clip_grad.enabled


def test_stages_start_from_one_another():
    starts = {s: load_config(f"stcn/stcn_stage{s}").train.init_checkpoint for s in STAGES}
    assert dict(starts[0]) == {
        "key_encoder": "resnet50-19c8e357.pth",
        "value_encoder": "resnet18-5c106cde.pth",
    }
    assert [Path(starts[s]).parent.name for s in (1, 2, 3)] == [
        "stcn_stage0",
        "stcn_stage1",
        "stcn_stage0",
    ]
    for stage in STAGES:
        cfg = load_config(f"stcn/stcn_stage{stage}")
        assert Path(cfg.train.output_dir).name == f"stcn_stage{stage}"


def test_data_are_the_published_ones():
    static = load_config("stcn/stcn_stage0").dataloader.train
    assert len(static.dataset) == 14
    assert list(static.dataset).count("static_hrsod") == 5
    stage2 = load_config("stcn/stcn_stage2").dataloader.train
    assert sorted(set(stage2.dataset)) == ["davis_2017_train", "youtube_vos_2019_train"]
    assert list(stage2.dataset).count("davis_2017_train") == 5
    assert list(stage2.mapper.augmentations[1].scale) == [0.36, 1.0]
    bl30k = load_config("stcn/stcn_stage1").dataloader.train
    assert list(bl30k.mapper.augmentations[1].scale) == [0.25, 1.0]
    objects = bl30k.mapper.object_sampler
    assert (objects.min_area, objects.large_area, objects.vanished_area) == (100, 900, 400)


@pytest.mark.parametrize(
    ("name", "dataset", "session"),
    [
        ("davis16", "davis_2016_val", {"protocol": "davis", "mem_every": 5}),
        ("davis17", "davis_2017_val", {"protocol": "davis", "mem_every": 5}),
        ("davis17_testdev", "davis_2017_testdev", {"protocol": "davis", "mem_every": 3}),
        (
            "ytvos18",
            "youtube_vos_2018_valid_all_frames",
            {"protocol": "youtube_vos", "mem_every": 5, "size": 480},
        ),
        (
            "ytvos19",
            "youtube_vos_2019_valid_all_frames",
            {"protocol": "youtube_vos", "mem_every": 5, "size": 480},
        ),
    ],
)
def test_protocols_of_evaluation(name, dataset, session):
    cfg = complete_config(load_config(f"stcn/stcn_r50_{name}"))
    cfg.train.init_checkpoint = ""
    check_config(cfg, training=False)
    assert cfg.dataloader.test.dataset == cfg.dataloader.evaluator.dataset_name == dataset
    expected = {"top_k": 20, "include_last": False, **session}
    assert dict(cfg.model.session) == expected
    assert cfg.dataloader.test.mapper.single_object == (name == "davis16")
    instantiate(cfg.dataloader.evaluator)


def write_video(folder: Path, masks: Path, count: int) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[10:50, 10:40], mask[20:45, 45:75] = 1, 2
    for t in range(count):
        write_image(folder / f"{t:05d}.jpg", np.full((60, 80, 3), 9 * t, np.uint8))
        write_label(masks / f"{t:05d}.png", mask, DAVIS_PALETTE)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_makes_samples_of_its_layout(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("VSS2_DATASETS", str(tmp_path))
    davis, youtube = tmp_path / "DAVIS/2017/trainval", tmp_path / "YouTube/train_480p"
    write_video(davis / "JPEGImages/480p/a", davis / "Annotations/480p/a", 5)
    (davis / "ImageSets/2017").mkdir(parents=True)
    (davis / "ImageSets/2017/train.txt").write_text("a\n")
    for base in (youtube, tmp_path / "BL30K"):
        write_video(base / "JPEGImages/b", base / "Annotations/b", 4)
    for name in ("DUTS-TR", "DUTS-TE", "ecssd", "BIG_small", "HRSOD_small", "fss/x"):
        folder = tmp_path / "static" / name
        write_image(folder / "1.jpg", np.full((50, 70, 3), 99, np.uint8))
        mask = np.zeros((50, 70), np.uint8)
        mask[10:40, 20:60] = 255
        write_label(folder / "1.png", mask)
    node = load_config(f"stcn/stcn_stage{stage}")
    train = node.dataloader.train
    train.update(num_workers=0, total_batch_size=2, seed=0)
    loader = instantiate(train)
    assert len(loader.videos) == (14, 1, 6, 6)[stage]
    samples = next(iter(loader))
    for sample in samples:
        assert sample["frames"].shape == (3, 3, 384, 384)
        assert sample["masks"].shape == (3, 384, 384)
        assert 1 <= sample["num_objects"] <= (1 if stage == 0 else 2)
        assert ("soft_masks" in sample) == (stage == 0)
        assert sample["masks"].any()
