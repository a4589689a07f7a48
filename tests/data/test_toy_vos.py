from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.build import build_test_loader
from vss2.data.datasets import toy_vos
from vss2.data.datasets.toy_vos_render import APPROACH, CATEGORIES, UNSEEN, comes_back
from vss2.data.datasets.ytvos_index import read_ytvos_index
from vss2.data.image_io import read_image, read_label
from vss2.data.vos_mappers import ObjectFrameMapper
from vss2.errors import InputError

TINY = toy_vos.ToyVOSWorld(
    num_davis_train=2,
    num_davis_val=1,
    num_youtube_train=2,
    num_youtube_valid=2,
    size=(48, 64),
    davis_frames=(4, 5),
    youtube_frames=16,
    seed=2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("toy_vos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VSS2_DATASETS", str(root))
        return toy_vos.make_toy_vos(TINY)


def load(name: str, folder: Path) -> list:
    return toy_vos._loaders()[name](folder)


def test_davis_part_has_a_mask_for_every_frame(folder):
    assert [v["video_id"] for v in load("davis_train", folder)] == ["train_0000", "train_0001"]
    (video,) = load("davis_val", folder)
    assert 4 <= len(video["frames"]) <= 5
    first = read_label(video["frames"][0]["label_file"])
    assert first.shape == (48, 64) == read_image(video["frames"][0]["file_name"]).shape[:2]
    count = len(TINY.scene("davis_val", 0).names)
    assert set(np.unique(first)) == set(range(count + 1))


def test_objects_of_youtube_part_appear_later_with_their_masks(folder):
    later = 0
    meta = json.loads((folder / "YouTube/valid/meta.json").read_text())["videos"]
    videos = load("youtube_valid_all_frames", folder)
    loader = build_test_loader(dataset=videos, mapper=ObjectFrameMapper())
    items = [item for batch in loader for item in batch]
    for video in videos:
        name, met = video["video_id"], []
        for item in (i for i in items if i["video_id"] == name):
            met += item.get("objects", [])
            later += bool(item.get("objects")) and item["frame_index"] > 0
            if item["required"]:
                assert item["frame_index"] % 5 == 0
                truth = read_label(item["label_file"])
                assert set(np.unique(truth)) <= {0, *met}
        assert sorted(met) == sorted(int(k) for k in meta[name]["objects"])
    assert later
    assert [len(v["frames"]) for v in load("youtube_valid", folder)] == [4, 4]
    assert [len(v["frames"]) for v in load("youtube_train", folder)] == [4, 4]


def test_full_rate_frames_and_their_list(folder):
    rows = read_ytvos_index(folder / "YouTube/ytvos.csv")
    assert [row.num_frames for row in rows] == [16, 16]
    videos = load("youtube_train_all_frames", folder)
    assert all(Path(f["file_name"]).is_file() for v in videos for f in v["frames"])


def test_objects_show_at_their_first_frame_and_not_before(folder):
    world = toy_vos.ToyVOSWorld(size=(48, 64), youtube_frames=30)
    for k in range(4):
        scene = world.scene("youtube_valid", k)
        for object_id, first in enumerate(scene.appears, start=1):
            if first:
                assert not (scene.frame(first - APPROACH)[1] == object_id).any()
            assert (scene.frame(first)[1] == object_id).sum() >= 30


def test_the_world_has_what_makes_propagation_hard():
    """One to four objects; some leave or are hidden and come back; some share a category."""
    world = toy_vos.ToyVOSWorld(size=(48, 64))
    counts, back, twins = set(), 0, 0
    for k in range(14):
        scene = world.scene("davis_val", k)
        counts.add(len(scene.names))
        twins += len(set(scene.names)) < len(scene.names)
        labels = np.stack([scene._draw(t)[1] for t in range(scene.num_frames)])
        for object_id in range(1, len(scene.names) + 1):
            back += comes_back((labels == object_id).any(axis=(1, 2)))
    assert counts == {1, 2, 3, 4}
    assert back >= 2
    assert twins >= 2


def test_some_categories_are_new_in_validation():
    world = toy_vos.ToyVOSWorld(size=(48, 64))
    train = {name for k in range(6) for name in world.scene("youtube_train", k).names}
    valid = {name for k in range(12) for name in world.scene("youtube_valid", k).names}
    assert not train & set(UNSEEN)
    assert valid == set(CATEGORIES)


def test_coming_back_takes_two_frames_of_absence():
    assert comes_back(np.array([1, 1, 0, 0, 1], bool))
    assert not comes_back(np.array([1, 0, 1, 1], bool))
    assert not comes_back(np.array([0, 0, 1, 1, 0, 0], bool))


def test_the_same_world_is_made_once_by_several_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setenv("VSS2_DATASETS", str(tmp_path))
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(toy_vos.make_toy_vos(TINY)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.name for p in tmp_path.iterdir()] == [TINY.name]
    assert folders == [tmp_path / TINY.name] * 2


def test_registered_with_their_evaluators():
    for name in ("davis_train", "davis_val", "youtube_train", "youtube_valid_all_frames"):
        assert f"toy_{name}" in DatasetCatalog.list()
    assert MetadataCatalog.get("toy_davis_val").evaluator_type == "davis"
    metadata = MetadataCatalog.get("toy_youtube_valid")
    assert metadata.evaluator_type == "youtube_vos"
    assert metadata.meta_file == f"{toy_vos.ToyVOSWorld().name}/YouTube/valid/meta.json"


def test_mistakes_are_named():
    with pytest.raises(InputError, match="one video of each part"):
        toy_vos.ToyVOSWorld(num_davis_val=0)
    with pytest.raises(InputError, match="at least 48 pixels"):
        toy_vos.ToyVOSWorld(size=(32, 64))
    with pytest.raises(InputError, match="at least 3 annotated frames"):
        toy_vos.ToyVOSWorld(davis_frames=(2, 4))
    with pytest.raises(InputError, match="no part 'davis_test'"):
        toy_vos.load_toy_vos("davis_test", TINY)
