"""Crops, loader, loss and a short run of the fine-grained training."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vss2.config import load_config
from vss2.d2.data import DatasetCatalog
from vss2.data.datasets.toy_vos import ToyVOSWorld, load_toy_vos
from vss2.data.image_io import read_image, write_image
from vss2.engine import complete_config, do_train, setup
from vss2.errors import InputError
from vss2.projects.sfc import (
    FineGrainedCorrespondence,
    FrameEncoder,
    TwoCropMapper,
    build_frame_loader,
)
from vss2.projects.sfc.loss import correspondence_loss

NAME = "sfc_training_test_frames"
SIDE = 40
FRAME = np.dstack([*np.meshgrid(np.arange(60), np.arange(50)), np.zeros((50, 60))])


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two videos of 3 and 7 frames whose red is x and whose green is y, in steps of 4."""
    root = tmp_path_factory.mktemp("frames")
    found = []
    for name, count in (("a", 3), ("b", 7)):
        frames = []
        for index in range(count):
            path = root / name / f"{index:05d}.png"
            write_image(path, (4 * FRAME).astype(np.uint8))
            frames.append({"file_name": str(path), "label_file": None, "frame_index": index})
        found.append({"video_id": name, "frames": frames})
    if NAME not in DatasetCatalog:
        DatasetCatalog.register(NAME, lambda: found)
    return found


def loader(**options: Any) -> Any:
    settings = {"total_batch_size": 2, "clips_per_video": 4, "seed": 3, **options}
    return build_frame_loader(dataset=NAME, mapper=TwoCropMapper(size=16), **settings)


def test_coordinates_say_where_a_crop_comes_from(videos: list[dict[str, Any]]) -> None:
    mapper = TwoCropMapper(size=SIDE, scale=(0.5, 1.0))
    sample = mapper({**videos[0], "frames": videos[0]["frames"][:2]}, np.random.default_rng(0))
    assert sample["frames"].shape == (2, 2, 3, SIDE, SIDE)
    assert sample["boxes"].shape == (2, 2, 4)
    assert sample["frame_indices"] == [0, 1]
    assert len({tuple(box.tolist()) for box in sample["boxes"].flatten(0, 1)}) == 4
    for view, box in zip(
        sample["frames"].flatten(0, 1), sample["boxes"].flatten(0, 1), strict=True
    ):
        red, green = view[0].float() / 4, view[1].float() / 4
        x0, y0, x1, y1 = (box * torch.tensor([59.0, 49.0, 59.0, 49.0])).tolist()
        # Corner pixels of the crop show the corner pixels of the box, up to the resize.
        assert red[0, 0] == pytest.approx(x0, abs=1.0)
        assert red[0, -1] == pytest.approx(x1, abs=1.0)
        assert green[0, 0] == pytest.approx(y0, abs=1.0)
        assert green[-1, 0] == pytest.approx(y1, abs=1.0)


def test_a_sample_is_a_function_of_its_generator(videos: list[dict[str, Any]]) -> None:
    mapper = TwoCropMapper(size=16)
    first, again, other = (mapper(videos[0], np.random.default_rng(s)) for s in (1, 1, 2))
    assert torch.equal(first["frames"], again["frames"])
    assert torch.equal(first["boxes"], again["boxes"])
    assert not torch.equal(first["boxes"], other["boxes"])


@pytest.mark.usefixtures("videos")
def test_an_epoch_holds_so_many_frames_of_each_video() -> None:
    train = loader(total_batch_size=1)
    assert train.epoch_length == 7
    samples = [batch[0] for batch in islice(iter(train), 14)]
    for epoch in (samples[:7], samples[7:]):
        seen = sorted((s["video_id"], s["frame_indices"][0]) for s in epoch)
        assert len(set(seen)) == 7
        assert [name for name, _ in seen] == ["a"] * 3 + ["b"] * 4
    assert [s["frame_indices"] for s in samples[:7]] != [s["frame_indices"] for s in samples[7:]]


@pytest.mark.usefixtures("videos")
def test_order_and_content_for_any_workers_and_after_a_resume() -> None:
    def boxes(batches: Any, count: int) -> list[torch.Tensor]:
        return [torch.stack([s["boxes"] for s in batch]) for batch in islice(batches, count)]

    whole = boxes(iter(loader()), 6)
    shared = boxes(iter(loader(num_workers=2)), 6)
    first = loader()
    boxes(iter(first), 4)
    second = loader(seed=99)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(whole, shared, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], boxes(iter(second), 2), strict=True))
    second.restart_epoch(2)  # position 12 is in the second epoch of 7
    assert (second.first, second.batches) == (7, 0)


@pytest.mark.usefixtures("videos")
def test_clips_of_several_frames() -> None:
    batch = next(iter(loader(clip_len=2, frame_rate=10, total_batch_size=4)))
    assert {s["video_id"] for s in batch} <= {"b"}  # "a" has 3 frames, a clip spans 4
    assert all(b - a == 3 for a, b in (s["frame_indices"] for s in batch))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"total_batch_size": 0}, "total_batch_size"),
        ({"clip_len": 0}, "clip_len"),
        ({"clip_len": 9}, "long enough for a clip of 9"),
        ({"clips_per_video": 0}, "clips_per_video"),
        ({"frame_rate": 0}, "frame_rate"),
    ],
)
@pytest.mark.usefixtures("videos")
def test_loaders_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        loader(**options)


def test_mappers_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="size above 0"):
        TwoCropMapper(size=0)
    with pytest.raises(InputError, match=r"scale within 0\.\.1"):
        TwoCropMapper(scale=(0.5, 1.5))
    with pytest.raises(InputError, match="ratio"):
        TwoCropMapper(ratio=(0, 1))
    write_image(tmp_path / "thin.png", np.zeros((1, 9, 3), np.uint8))
    frame = {"file_name": str(tmp_path / "thin.png"), "frame_index": 0}
    with pytest.raises(InputError, match=r"thin\.png is 1x9"):
        TwoCropMapper()({"video_id": "v", "frames": [frame]}, np.random.default_rng(0))


def test_the_frame_list_of_youtube_vos_is_read_or_rebuilt(tmp_path: Path) -> None:
    world = ToyVOSWorld(1, 1, 2, 1, (48, 64), (3, 3), 16)
    videos = load_toy_vos("youtube_train_all_frames", world)
    assert [len(video["frames"]) for video in videos] == [16, 16]
    assert read_image(videos[0]["frames"][3]["file_name"]).shape == (48, 64, 3)


def unit(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(shape), dim=1)


def test_equal_views_that_say_the_same_lose_minus_two() -> None:
    features, box = unit(2, 5, 3, 4), torch.tensor([[0.1, 0.2, 0.7, 0.9]]).expand(2, 4)
    loss = correspondence_loss(features, features, box, box, radius=0.5)
    assert loss.item() == pytest.approx(-2.0, abs=1e-6)


def test_views_without_overlap_lose_nothing_but_count() -> None:
    features = unit(2, 5, 3, 4)
    here = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.0, 0.0, 0.4, 0.4]])
    there = torch.tensor([[0.6, 0.6, 1.0, 1.0], [0.0, 0.0, 0.4, 0.4]])
    loss = correspondence_loss(features, features, here, there, radius=0.5)
    assert loss.item() == pytest.approx(-1.0, abs=1e-6)


def test_a_crop_of_one_pixel_gives_no_nan() -> None:
    features = unit(1, 5, 3, 4).requires_grad_()
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    loss = correspondence_loss(features, features.detach(), point, point, radius=0.5)
    loss.backward()
    assert loss.item() == 0
    assert bool(features.grad.isfinite().all())


def test_the_target_follows_slowly_and_learns_nothing() -> None:
    torch.manual_seed(0)
    model = FineGrainedCorrespondence(
        encoder=FrameEncoder(18, num_stages=4), total_steps=10, projection_dim=8, hidden_dim=16
    ).train()
    start = model.target_encoder.conv1.weight.clone()
    with torch.no_grad():
        model.online_encoder.conv1.weight += 1.0
    sample = {
        "frames": torch.randint(0, 256, (2, 1, 3, 32, 32), dtype=torch.uint8),
        "boxes": torch.tensor([[[0.0, 0.0, 0.8, 0.8]], [[0.2, 0.2, 1.0, 1.0]]]),
        "image_size": (32, 32),
    }
    sum(model([sample, sample]).values()).backward()
    torch.testing.assert_close(model.target_encoder.conv1.weight, start + 0.01, atol=1e-6, rtol=0)
    assert model.ema_step == 1
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("target_"), name
        assert parameter.requires_grad != name.startswith("target_")
    # Cells of one image do not see the others but through batch statistics.
    features = model.eval().encode(torch.randn(2, 3, 32, 48))
    assert features.shape == (2, 256, 4, 6)


def test_a_run_of_the_toy_config_trains_and_propagates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = ToyVOSWorld(1, 1, 2, 1, (48, 64), (4, 4), 16)
    monkeypatch.setenv("VSS2_DATASETS", str(tmp_path / "data"))
    for part in ("youtube_train_all_frames", "davis_val"):
        DatasetCatalog.pop(f"sfc_small_{part}", None)
        DatasetCatalog.register(f"sfc_small_{part}", lambda part=part: load_toy_vos(part, world))
    cfg = load_config("sfc/sfc_toy")
    cfg.dataloader.train.dataset = "sfc_small_youtube_train_all_frames"
    cfg.dataloader.test.dataset = "sfc_small_davis_val"
    cfg.dataloader.evaluator.dataset_name = "sfc_small_davis_val"
    cfg.dataloader.train.update(total_batch_size=2, num_workers=0)
    cfg.dataloader.train.mapper.size = 32
    cfg.dataloader.test.num_workers = 0
    cfg.model.update(projection_dim=8, hidden_dim=16)
    cfg.train.update(max_iter=2, eval_period=0, log_period=1, device="cpu", num_threads=1)
    cfg.train.output_dir = str(tmp_path / "run")
    cfg = complete_config(cfg)
    setup(cfg)
    results = do_train(cfg)
    assert 0 <= results["vos"]["J&F-Mean"] <= 100
    assert len(list((tmp_path / "run/inference").rglob("0000?.png"))) == 4
    rows = [json.loads(r) for r in (tmp_path / "run/metrics.json").read_text().splitlines()]
    assert -4 <= rows[0]["total_loss"] <= 4
    assert rows[1]["ema_momentum"] == pytest.approx(0.995, abs=1e-9)  # half of the way to 1
    state = torch.load(tmp_path / "run/model_final.pth", weights_only=True)["model"]
    assert state["ema_step"] == 2
