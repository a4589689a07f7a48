from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.datasets import register_all, toy
from vss2.data.datasets.toy_damage import choose_damaged_frames
from vss2.data.datasets.toy_render import CLASSES, OBJECTS, RAW_VOID, Scene, _make_sprite
from vss2.data.datasets.vspw import load_vspw
from vss2.data.image_io import read_image, read_label
from vss2.errors import InputError

TINY = toy.ToyWorld(
    num_train=2, num_val=1, size=(48, 64), train_frames=(5, 6), val_frames=(7, 7), seed=3
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return toy.make_toy_world(TINY, tmp_path_factory.mktemp("toy") / "world")


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_layout_is_that_of_vspw(world):
    train, val = load_vspw(world, "train"), load_vspw(world, "val")
    assert [video["video_id"] for video in train] == ["train_0000", "train_0001"]
    assert [len(video["frames"]) for video in val] == [7]
    assert all(5 <= len(video["frames"]) <= 6 for video in train)
    raw_ids = json.loads((world / "label_num_dic_final.json").read_text())
    assert raw_ids["others"] == "0"
    assert [raw_ids[name] for name in CLASSES] == [str(k) for k in range(1, 13)]


def test_frames_and_masks_fit_together(world):
    for frame in load_vspw(world, "train")[0]["frames"]:
        with Image.open(frame["label_file"]) as mask:
            assert mask.mode == "P"
        label = read_label(frame["label_file"])
        assert read_image(frame["file_name"]).shape == (48, 64, 3)
        assert label.shape == (48, 64)
        assert set(np.unique(label)) <= {*range(13), RAW_VOID}


def test_same_parameters_give_the_same_bytes_and_another_seed_others(world, tmp_path):
    again = toy.make_toy_world(TINY, tmp_path / "again")
    assert _files(again) == _files(world)
    frame, _ = TINY.scene("train", 0).frame(0)
    other, _ = toy.ToyWorld(size=(48, 64), seed=4).scene("train", 0).frame(0)
    assert not np.array_equal(frame, other)


def test_a_video_does_not_depend_on_how_many_there_are(world, tmp_path):
    more = toy.ToyWorld(**{**vars(TINY), "num_train": 3, "num_val": 2})
    files, fewer = _files(toy.make_toy_world(more, tmp_path / "more")), _files(world)
    data = {name: content for name, content in fewer.items() if name.startswith("data/")}
    assert data.items() <= files.items()
    assert len(files) > len(fewer)
    assert more.name != TINY.name


def test_split_and_index_give_different_videos():
    frames = [TINY.scene(split, k).frame(0)[0].tobytes() for split in toy.SPLITS for k in range(3)]
    assert len(set(frames)) == 6


def test_default_world_suits_the_metrics_and_shows_every_class():
    world = toy.ToyWorld()
    assert world.num_train >= 40
    assert world.num_val >= 8
    lengths = [world.scene("val", k).num_frames for k in range(world.num_val)]
    assert min(lengths) >= 18
    seen = set()
    for k in range(world.num_val):
        seen |= set(np.unique(world.scene("val", k).frame(0)[1]))
    assert set(range(1, len(CLASSES) + 1)) <= seen


def test_label_area_is_the_shape_that_was_drawn():
    """A ball's label covers the disc's area as the camera's zoom shows it."""
    rng = np.random.default_rng(0)
    scene = Scene((96, 128), 16, rng)
    ball = _make_sprite("ball", (96, 128), 16, rng)
    ball.centre, ball.velocity, ball.swing = np.array([64.0, 48.0]), np.zeros(2), np.zeros(2)
    scene.sprites = [ball]
    scene.drift[:] = scene.sway[:] = 0
    for t in (0, 8, 15):
        _, label = scene.frame(t)
        zoom = scene.zoom[0] + scene.zoom[1] * (t / 15 - 0.5)
        area = np.pi * (0.95 * ball.radius * zoom) ** 2
        ball_pixels = np.sum(label == ball.raw_id)
        ties = np.sum(label == RAW_VOID)
        assert ball_pixels + ties / 2 == pytest.approx(area, rel=0.02)
        assert ties < 0.15 * 2 * np.pi * ball.radius * zoom * 2


def test_objects_move_are_hidden_and_come_back():
    came_back = 0
    for k in range(12):
        scene = TINY.scene("train", k) if k < 2 else toy.ToyWorld(size=(48, 64)).scene("val", k)
        labels = np.stack([scene._draw(t)[1] for t in range(scene.num_frames)])
        assert np.mean(labels[0] != labels[-1]) > 0.05
        for raw_id in range(1 + len(CLASSES) - len(OBJECTS), 1 + len(CLASSES)):
            there = np.any(labels == raw_id, axis=(1, 2)).astype(int)
            gaps = np.flatnonzero(np.diff(there) == -1)
            came_back += any(there[gap + 1 :].any() for gap in gaps)
    assert came_back >= 2


def test_damaged_frames_are_few_and_never_neighbours():
    rng = np.random.default_rng(0)
    chosen = [choose_damaged_frames(18, rng) for _ in range(200)]
    assert all(frames == sorted(frames) for frames in chosen)
    assert all(0 not in frames for frames in chosen)
    assert all(b - a > 1 for f in chosen for a, b in itertools.pairwise(f))
    assert np.mean([len(frames) for frames in chosen]) / 18 == pytest.approx(0.15, abs=0.01)
    assert choose_damaged_frames(1, rng) == []


def test_damage_hides_colour_and_is_recorded(world):
    damaged = toy.damaged_frames("val", world)
    assert list(damaged) == ["val_0000"]
    losses = []
    for k in range(6):
        scene = toy.ToyWorld().scene("val", k)
        for t in scene.damaged:
            clean, bad = (np.ptp(scene.frame(i)[0].astype(int), axis=2).mean() for i in (t - 1, t))
            changed = np.abs(scene.frame(t)[0].astype(int) - scene.frame(t - 1)[0]).mean()
            losses.append((clean, bad, changed))
    clean, bad, changed = np.mean(losses, axis=0)
    assert changed > 30
    quiet = [row for row in losses if row[1] < 0.5 * row[0]]  # noise is colourful itself
    assert len(quiet) > 0.5 * len(losses)


def test_labels_of_damaged_frames_stay_exact():
    scene = toy.ToyWorld().scene("val", 0)
    t = scene.damaged[0]
    assert np.array_equal(scene.frame(t)[1], scene._draw(t)[1])


def test_two_may_ask_at_once(tmp_path):
    barrier, results = threading.Barrier(2), []

    def ask():
        barrier.wait()
        results.append(toy.make_toy_world(TINY, tmp_path / "shared"))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "shared"] * 2
    assert [p.name for p in tmp_path.iterdir()] == ["shared"]
    assert len(load_vspw(tmp_path / "shared", "train")) == 2


def test_the_loser_of_the_race_keeps_the_winners_folder(tmp_path, monkeypatch):
    write = toy._write_world
    target = tmp_path / "shared"

    def late(world, folder, progress):
        monkeypatch.setattr(toy, "_write_world", write)
        toy.make_toy_world(TINY, target)
        (target / "winner").touch()
        write(world, folder, progress)

    monkeypatch.setattr(toy, "_write_world", late)
    assert toy.make_toy_world(TINY, target) == target
    assert (target / "winner").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["shared"]


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.make_toy_world(TINY, tmp_path / "world", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_foreign_folders_are_left_alone(world, tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(InputError, match="not empty and no toy world"):
        toy.make_toy_world(TINY, tmp_path)
    with pytest.raises(InputError, match="other parameters"):
        toy.make_toy_world(toy.ToyWorld(), world)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="VSS2_DATASETS"):
        toy.make_toy_world(TINY, tmp_path / "file" / "world")


@pytest.mark.parametrize(
    "bad", [{"num_train": 0}, {"size": (8, 128)}, {"val_frames": (9, 5)}, {"seed": -1}]
)
def test_bad_parameters_are_named(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        toy.ToyWorld(**bad)


def test_load_toy_uses_the_datasets_root(tmp_path, monkeypatch):
    monkeypatch.setenv("VSS2_DATASETS", str(tmp_path))
    videos = toy.load_toy("val", TINY)
    assert Path(videos[0]["frames"][0]["file_name"]).is_relative_to(tmp_path / TINY.name)
    with pytest.raises(InputError, match="Did you mean 'train'"):
        toy.load_toy("trian", TINY)
    with pytest.raises(InputError, match="no toy world"):
        toy.damaged_frames("val", tmp_path)


def test_registered_with_metadata():
    register_all()
    for split in toy.SPLITS:
        assert f"toy_{split}" in DatasetCatalog.list()
        metadata = MetadataCatalog.get(f"toy_{split}")
        assert metadata.stuff_classes == list(CLASSES)
        assert len(set(metadata.stuff_colors)) == len(CLASSES)
        assert (metadata.ignore_label, metadata.evaluator_type) == (255, "vss")
