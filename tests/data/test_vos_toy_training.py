"""STCN's toy config from data to score: it trains, resumes in the same bits, evaluates, learns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from vss2.cli.train_net import main as train_main
from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.build import get_video_dicts
from vss2.data.datasets.toy_vos import ToyVOSWorld, load_toy_vos
from vss2.data.image_io import read_label
from vss2.evaluation import score_davis

PARTS = ("davis_train", "davis_val")
BOTH = [
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.device=cpu",
    "train.num_threads=1",
    "train.tensorboard=false",
]
TINY = [
    "dataloader.train.total_batch_size=2",
    "dataloader.train.mapper.augmentations.1.size=[48,48]",
    "model.key_encoder.stem_channels=8",
    "model.value_encoder_stem=8",
    "model.key_dim=8",
    "model.value_dim=16",
    "lr_multiplier.warmup_iters=0",
    "train.checkpointer.period=2",
]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`data(world)` registers stcn_test_davis_train and stcn_test_davis_val."""
    monkeypatch.setenv("VSS2_DATASETS", str(tmp_path / "datasets"))

    def register(world: ToyVOSWorld) -> None:
        for part in PARTS:
            name = f"stcn_test_{part}"
            DatasetCatalog.register(name, lambda part=part: load_toy_vos(part, world))
            MetadataCatalog.get(name).set(evaluator_type="davis")

    yield register
    for part in PARTS:
        DatasetCatalog.remove(f"stcn_test_{part}")
        MetadataCatalog.remove(f"stcn_test_{part}")


def run(output: Path, *extra: str) -> None:
    names = [
        "dataloader.train.dataset=stcn_test_davis_train",
        "dataloader.test.dataset=stcn_test_davis_val",
        "dataloader.evaluator.dataset_name=stcn_test_davis_val",
    ]
    flags = [token for token in extra if token.startswith("--")]
    settings = [token for token in extra if not token.startswith("--")]
    argv = ["--config-file", "stcn/stcn_toy", *flags, *names, *BOTH]
    assert train_main([*argv, f"train.output_dir={output}", *settings]) == 0


def weights(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


def score(output: Path) -> dict[str, float]:
    return json.loads((output / "inference/results.json").read_text())["scores"]


def test_a_resumed_run_ends_in_the_same_bits_and_evaluates_alike(data, tmp_path):
    data(ToyVOSWorld(4, 2, 1, 1, size=(64, 96), davis_frames=(6, 8), youtube_frames=16))
    # The gap between frames changes at iteration 2, where the second run goes on.
    gaps = "dataloader.train.mapper.clip_sampler.curriculum"
    settings = [
        *TINY,
        "lr_multiplier.max_iter=4",
        f"{gaps}.max_skips=[1,4]",
        f"{gaps}.fractions=[0.5]",
        "train.max_iter=4",
    ]
    run(tmp_path / "whole", *settings)
    (tmp_path / "cut").mkdir()
    shutil.copy(tmp_path / "whole/model_0000001.pth", tmp_path / "cut")
    (tmp_path / "cut/last_checkpoint").write_text("model_0000001.pth")
    run(tmp_path / "cut", "--resume", *settings)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    assert score(tmp_path / "whole") == score(tmp_path / "cut")
    run(
        tmp_path / "again",
        "--eval-only",
        f"train.init_checkpoint={tmp_path}/whole/model_final.pth",
        *settings,
    )
    assert score(tmp_path / "again") == score(tmp_path / "whole")


def copied_first_masks() -> float:
    """J&F of answering every frame with the mask of the first."""
    sequences = []
    for video in get_video_dicts("stcn_test_davis_val"):
        truth = np.stack([read_label(frame["label_file"]) for frame in video["frames"]])
        sequences.append((video["video_id"], truth, np.repeat(truth[:1], len(truth), axis=0)))
    return score_davis(sequences)["J&F-Mean"]


@pytest.mark.soak
def test_a_short_training_beats_copying_the_first_mask(data, tmp_path):
    """An eighth of the toy config's training, on fewer videos."""
    data(ToyVOSWorld(48, 5, 1, 1))
    settings = ["train.max_iter=300", "lr_multiplier.max_iter=300", "train.eval_period=0"]
    settings += ["model.bootstrap_start=75", "model.bootstrap_end=225"]
    run(tmp_path, *settings)
    assert score(tmp_path)["J&F-Mean"] / 100 > copied_first_masks() + 0.2
