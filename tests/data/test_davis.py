from __future__ import annotations

from pathlib import Path

import pytest
from vos_files import stems, write_frames

from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.build import build_test_loader
from vss2.data.datasets import register_all
from vss2.data.datasets.davis import SPLITS, load_davis
from vss2.data.doctor import check_dataset
from vss2.data.vos_mappers import ObjectFrameMapper
from vss2.errors import InputError, InputFileError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "DAVIS"
    trainval, testdev = root / "2017/trainval", root / "2017/test-dev"
    for base, name in ((trainval, "bear"), (trainval, "bike"), (root / "2016", "bike")):
        ids = (255,) if base.name == "2016" else (1, 2)
        folders = (base / part / "480p" / name for part in ("JPEGImages", "Annotations"))
        write_frames(*folders, stems(4), ids=ids)
    write_frames(testdev / "JPEGImages/480p/cat", None, stems(3))
    write_frames(testdev / "x", testdev / "Annotations/480p/cat", stems(1))
    for file, names in (
        (trainval / "ImageSets/2017/train.txt", "bike\nbear\n"),
        (trainval / "ImageSets/2017/val.txt", "bear"),
        (trainval / "ImageSets/2016/val.txt", "bike\n"),
        (testdev / "ImageSets/2017/test-dev.txt", "cat\n"),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(names)
    return root


def test_videos_come_in_the_order_of_the_list_with_all_masks(root):
    videos = load_davis(root, "2017_train")
    assert [video["video_id"] for video in videos] == ["bike", "bear"]
    frames = videos[0]["frames"]
    assert [frame["frame_index"] for frame in frames] == [0, 1, 2, 3]
    assert frames[2]["file_name"].endswith("trainval/JPEGImages/480p/bike/00002.jpg")
    assert frames[2]["label_file"].endswith("trainval/Annotations/480p/bike/00002.png")
    assert all(frame["required"] for frame in frames)
    assert frames[0]["mask_file"] == frames[0]["label_file"]
    assert [frame["mask_file"] for frame in frames[1:]] == [None] * 3


def test_of_test_dev_only_first_masks_are_there(root):
    (video,) = load_davis(root, "2017_testdev")
    assert [frame["label_file"] for frame in video["frames"]] == [None] * 3
    assert video["frames"][0]["mask_file"].endswith("test-dev/Annotations/480p/cat/00000.png")


def test_davis_2016_reads_its_own_files_by_the_list_of_2017(root):
    (video,) = load_davis(root, "2016_val")
    assert "/2016/JPEGImages/480p/bike/" in video["frames"][0]["file_name"]
    mapper = ObjectFrameMapper(single_object=True)
    items = [item for batch in build_test_loader(dataset=[video], mapper=mapper) for item in batch]
    assert items[0]["objects"] == [1]  # stored as 255
    assert (items[0]["mask"] == 1).sum() == 64
    assert "mask" not in items[1]


def test_all_splits_are_registered(root, monkeypatch):
    monkeypatch.setenv("VSS2_DATASETS", str(root.parent))
    register_all()
    assert {f"davis_{split}" for split in SPLITS} <= set(DatasetCatalog.list())
    assert [v["video_id"] for v in DatasetCatalog.get("davis_2017_val")] == ["bear"]
    metadata = MetadataCatalog.get("davis_2016_val")
    assert (metadata.evaluator_type, metadata.year) == ("davis", 2016)


def test_what_is_missing_is_named(root):
    with pytest.raises(InputError, match=r"no split '2017_vall'.*Did you mean '2017_val'"):
        load_davis(root, "2017_vall")
    with pytest.raises(InputFileError, match=r"2016/train\.txt does not exist.*VSS2_DATASETS"):
        load_davis(root, "2016_train")
    (root / "2017/trainval/Annotations/480p/bear/00002.png").unlink()
    with pytest.raises(InputFileError, match=r"'bear' lacks 1 masks: .*00002\.png is missing"):
        load_davis(root, "2017_val")
    (root / "2017/trainval/ImageSets/2017/val.txt").write_text("bear\nbear\n")
    with pytest.raises(InputError, match="names 'bear' twice"):
        load_davis(root, "2017_val")
    (root / "2017/trainval/ImageSets/2017/val.txt").write_text("wolf\n")
    with pytest.raises(InputFileError, match="'wolf' has no folder"):
        load_davis(root, "2017_val")


def test_the_doctor_finds_damage(root, monkeypatch):
    monkeypatch.setenv("VSS2_DATASETS", str(root.parent))
    assert not check_dataset("davis_2017_val", num_workers=0).findings
    (root / "2017/trainval/Annotations/480p/bear/00002.png").write_bytes(b"\x89PNG cut")
    report = check_dataset("davis_2017_val", num_workers=0)
    assert [finding.kind for finding in report.findings] == ["label_truncated"]
