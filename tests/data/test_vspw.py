from __future__ import annotations

from pathlib import Path

import pytest

from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.build import get_video_dicts
from vss2.data.datasets import datasets_root, register_all
from vss2.data.datasets.vspw import CLASS_NAMES, class_colors, load_vspw
from vss2.errors import InputError, InputFileError


def test_video_dicts_are_in_list_and_name_order(make_vspw):
    root = make_vspw({"9_b_x": 3, "10_a": 12, "one": 1})
    videos = load_vspw(root, "train")
    assert [video["video_id"] for video in videos] == ["9_b_x", "10_a", "one"]
    assert [len(video["frames"]) for video in videos] == [3, 12, 1]
    for video in videos:
        assert [frame["frame_index"] for frame in video["frames"]] == list(
            range(len(video["frames"]))
        )
        names = [frame["file_name"] for frame in video["frames"]]
        assert names == sorted(names)
        for frame in video["frames"]:
            image, mask = Path(frame["file_name"]), Path(frame["label_file"])
            assert image.is_file()
            assert mask.is_file()
            assert image.stem == mask.stem
            assert (image.parent.name, mask.parent.name) == ("origin", "mask")


def test_the_list_may_have_blanks_and_windows_line_ends(make_vspw):
    root = make_vspw({"a": 2, "b": 2}, split="val")
    (root / "val.txt").write_bytes(b"  b \r\n\r\na")
    assert [video["video_id"] for video in load_vspw(root, "val")] == ["b", "a"]


def test_hidden_and_foreign_files_are_no_frames(make_vspw):
    root = make_vspw({"a": 2})
    for name in (".hidden.jpg", "Thumbs.db", "notes.txt"):
        (root / "data" / "a" / "origin" / name).write_bytes(b"x")
    assert len(load_vspw(root, "train")[0]["frames"]) == 2


def test_a_split_without_masks_has_no_label_files(make_vspw):
    root = make_vspw({"a": 2, "b": 3}, split="test", masks=False)
    videos = load_vspw(root, "test")
    assert {frame["label_file"] for video in videos for frame in video["frames"]} == {None}


def test_a_missing_root_shows_the_layout_and_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("VSS2_DATASETS", str(tmp_path / "nowhere"))
    with pytest.raises(InputFileError) as caught:
        get_video_dicts("vspw_train")
    message = str(caught.value)
    assert str(tmp_path / "nowhere" / "VSPW_480p") in message
    assert "VSS2_DATASETS" in message
    assert "origin/*.jpg" in message
    assert "mask/*.png" in message
    assert "\n" not in message


def test_a_missing_list_file_is_named(make_vspw):
    root = make_vspw({"a": 2}, split="train")
    with pytest.raises(InputFileError, match=r"val\.txt does not exist"):
        load_vspw(root, "val")


def test_an_empty_list_and_a_repeated_video_are_errors(make_vspw):
    root = make_vspw({"a": 2})
    (root / "train.txt").write_text("\n\n")
    with pytest.raises(InputError, match="names no video"):
        load_vspw(root, "train")
    (root / "train.txt").write_text("a\na\n")
    with pytest.raises(InputError, match="'a' twice"):
        load_vspw(root, "train")


def test_a_listed_video_without_folder_is_named(make_vspw):
    root = make_vspw({"a": 2})
    (root / "train.txt").write_text("a\nlost_video\n")
    with pytest.raises(InputFileError, match="'lost_video'"):
        load_vspw(root, "train")


def test_a_video_without_frames_is_named(make_vspw):
    root = make_vspw({"a": 2, "hollow": 0})
    with pytest.raises(InputError, match="'hollow' is empty"):
        load_vspw(root, "train")


def test_a_frame_without_mask_is_named(make_vspw):
    root = make_vspw({"a": 3})
    (root / "data" / "a" / "mask" / "00000013.png").unlink()
    with pytest.raises(InputFileError, match=r"mask/00000013\.png is missing"):
        load_vspw(root, "train")


def test_a_video_without_masks_among_others_is_named(make_vspw):
    root = make_vspw({"a": 1})
    make_vspw({"bare": 1}, masks=False)
    (root / "train.txt").write_text("a\nbare\n")
    with pytest.raises(InputFileError, match="'bare' has no masks"):
        load_vspw(root, "train")


def test_unknown_splits_get_close_matches(tmp_path):
    with pytest.raises(InputError, match="'train'"):
        load_vspw(tmp_path, "trian")


def test_the_root_is_read_when_asked(make_vspw, monkeypatch, tmp_path):
    root = make_vspw({"a": 2}, split="val")
    monkeypatch.setenv("VSS2_DATASETS", str(root.parent))
    assert datasets_root() == root.parent
    assert [video["video_id"] for video in get_video_dicts("vspw_val")] == ["a"]
    monkeypatch.delenv("VSS2_DATASETS")
    assert datasets_root() == Path("datasets")


def test_registration_is_repeatable_and_metadata_complete():
    register_all()
    register_all()
    for split in ("train", "val", "test"):
        assert f"vspw_{split}" in DatasetCatalog.list()
        metadata = MetadataCatalog.get(f"vspw_{split}")
        assert len(metadata.stuff_classes) == len(metadata.stuff_colors) == 124
        assert metadata.ignore_label == 255
        assert metadata.evaluator_type == "vss"


def test_class_names_and_colours():
    assert len(set(CLASS_NAMES)) == 124
    assert (CLASS_NAMES[0], CLASS_NAMES[60], CLASS_NAMES[123]) == ("wall", "person", "train")
    colors = class_colors(124)
    assert len(set(colors)) == 124
    assert colors == class_colors(124)
    assert all(0 <= value <= 255 and isinstance(value, int) for c in colors for value in c)


def test_unknown_data_sets_get_close_matches():
    with pytest.raises(InputError, match="'vspw_train'"):
        get_video_dicts("vspw_trian")
    with pytest.raises(InputError, match="vspw_val"):
        get_video_dicts(["zzzzzzzzzz"])
    with pytest.raises(InputError, match="No data set"):
        get_video_dicts([])
