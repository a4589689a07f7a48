from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vos_files import object_ids, stems, write_frames

from vss2.cli import prepare_data
from vss2.data.build import build_test_loader
from vss2.data.datasets.youtube_vos import (
    load_youtube_vos_frames,
    load_youtube_vos_train,
    load_youtube_vos_valid,
)
from vss2.data.datasets.ytvos_index import FrameRange, build_ytvos_index, read_ytvos_index
from vss2.data.image_io import read_image, read_label, write_label
from vss2.data.vos_mappers import ObjectFrameMapper
from vss2.data.vos_palette import DAVIS_PALETTE
from vss2.errors import InputError, InputFileError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training videos at 480p; one validation video, object 4 from frame 10 on."""
    root = tmp_path / "YouTube"
    for name, count in (("aa", 4), ("bb", 3)):
        base = root / "train_480p"
        write_frames(base / "JPEGImages" / name, base / "Annotations" / name, stems(count, 5))
    write_frames(root / "valid/JPEGImages/vv", None, stems(4, 5))
    write_frames(root / "all_frames/valid_all_frames/JPEGImages/vv", None, stems(16))
    masks = root / "valid/Annotations/vv"
    write_label(masks / "00000.png", object_ids(24, 40, 0, (2,)), DAVIS_PALETTE)
    write_label(masks / "00010.png", object_ids(24, 40, 2, (0, 4)), DAVIS_PALETTE)
    objects = {
        "2": {"category": "cat", "frames": ["00000", "00005", "00010", "00015"]},
        "4": {"category": "owl", "frames": ["00010", "00015"]},
    }
    meta = {"videos": {"vv": {"objects": objects}}}
    (root / "valid/meta.json").write_text(json.dumps(meta))
    return root


def test_training_videos_know_their_step(root):
    videos = load_youtube_vos_train(root)
    assert [(v["video_id"], len(v["frames"]), v["frame_step"]) for v in videos] == [
        ("aa", 4, 5),
        ("bb", 3, 5),
    ]
    frame = videos[0]["frames"][-1]
    assert frame["file_name"].endswith("train_480p/JPEGImages/aa/00015.jpg")
    assert frame["label_file"].endswith("train_480p/Annotations/aa/00015.png")
    assert frame["frame_index"] == 3
    again = pickle.loads(pickle.dumps(videos))
    assert list(again[0]["frames"]) == list(videos[0]["frames"])
    assert videos[0]["frames"][1:3] == list(videos[0]["frames"])[1:3]
    with pytest.raises(IndexError):
        videos[0]["frames"][4]


def test_a_subset_file_picks_training_videos(root, caplog):
    (root / "train_subset.txt").write_text("bb\nnot_there\n")
    with caplog.at_level(logging.INFO):
        assert [v["video_id"] for v in load_youtube_vos_train(root)] == ["bb"]
    assert "names 2 of 2 videos" in caplog.text


def test_validation_says_which_masks_are_given_and_which_answers_wanted(root):
    (video,) = load_youtube_vos_valid(root, all_frames=True)
    frames = video["frames"]
    assert len(frames) == 16
    assert [f["frame_index"] for f in frames if f["mask_file"]] == [0, 10]
    assert [f["frame_index"] for f in frames if f["required"]] == [0, 5, 10, 15]
    assert {f["label_file"] for f in frames} == {None}
    items = [i for b in build_test_loader(dataset=[video], mapper=ObjectFrameMapper()) for i in b]
    assert items[0]["objects"] == [2]
    assert items[10]["objects"] == [4]
    assert (items[10]["mask"] == 4).sum() == 64
    (every_fifth,) = load_youtube_vos_valid(root)
    assert [f["mask_file"] is not None for f in every_fifth["frames"]] == [True, False, True, False]
    assert all(f["required"] for f in every_fifth["frames"])


def test_dense_masks_serve_as_truth_of_required_frames(root):
    (video,) = load_youtube_vos_valid(root, True, truth="Annotations_dense")
    named = {f["frame_index"]: f["label_file"] for f in video["frames"] if f["label_file"]}
    assert list(named) == [0, 5, 10, 15]
    assert named[5].endswith("valid/Annotations_dense/vv/00005.png")


def test_what_is_wrong_is_named(root):
    (root / "all_frames/valid_all_frames/JPEGImages/vv/00010.jpg").unlink()
    with pytest.raises(InputFileError, match=r"lacks the frame .*00010\.jpg"):
        load_youtube_vos_valid(root, all_frames=True)
    (root / "valid/meta.json").write_text('{"videos": {"vv": {"objects": {"1": {}}}}}')
    with pytest.raises(InputError, match=r"meta\.json is not a meta\.json of YouTube-VOS"):
        load_youtube_vos_valid(root)
    (root / "valid/meta.json").unlink()
    with pytest.raises(InputFileError, match=r"meta\.json: No such file.*VSS2_DATASETS"):
        load_youtube_vos_valid(root)
    with pytest.raises(InputFileError, match="resize-youtube"):
        load_youtube_vos_train(root.parent / "elsewhere")


def test_resize_makes_the_short_side_480_and_keeps_ids_and_palette(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VSS2_DATASETS", str(tmp_path))
    source = tmp_path / "YouTube/train"
    folders = source / "JPEGImages/vid", source / "Annotations/vid"
    write_frames(*folders, stems(2), size=(36, 65))
    assert prepare_data.main(["resize-youtube", "--num-workers", "1"]) == 0
    assert "4 frames and masks" in capsys.readouterr().out
    target = tmp_path / "YouTube/train_480p"
    assert read_image(target / "JPEGImages/vid/00001.jpg").shape == (480, 866, 3)
    mask = read_label(target / "Annotations/vid/00001.png")
    assert mask.shape == (480, 866)
    assert set(np.unique(mask)) == {0, 1, 2}
    with Image.open(target / "Annotations/vid/00001.png") as image:
        assert image.getpalette()[3:6] == [128, 0, 0]
    (target / "JPEGImages/vid/00000.jpg").unlink()
    assert prepare_data.main(["resize-youtube", "--num-workers", "1"]) == 0
    assert "1 frames and masks" in capsys.readouterr().out
    (source / "JPEGImages/vid/00002.jpg").write_bytes(b"\xff\xd8 cut")
    assert prepare_data.main(["resize-youtube", "--num-workers", "1"]) == 2
    assert "00002.jpg is cut off" in capsys.readouterr().err


def test_the_frame_list_is_made_read_and_used(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VSS2_DATASETS", str(tmp_path))
    root = tmp_path / "YouTube2018"
    folder = root / "train_all_frames/JPEGImages"
    write_frames(folder / "aa", None, ["00007", "00008", "00009"])
    write_frames(folder / "bb", None, stems(2))
    assert load_youtube_vos_frames(root)[0]["frames"][0]["file_name"].endswith("aa/00007.jpg")
    assert prepare_data.main(["ytvos-index"]) == 0
    assert "2 videos, 5 frames" in capsys.readouterr().out
    assert (root / "ytvos.csv").read_text() == "aa,7,3\nbb,0,2\n"
    rows = read_ytvos_index(root / "ytvos.csv")
    assert rows == [FrameRange("aa", 7, 3), FrameRange("bb", 0, 2)] == build_ytvos_index(folder)
    assert rows[0].file_name(2) == "aa/00009.jpg"
    (video, _) = load_youtube_vos_frames(root)
    assert [f["file_name"] for f in video["frames"]] == [
        str(folder / f"aa/0000{n}.jpg") for n in (7, 8, 9)
    ]
    (folder / "aa/00008.jpg").unlink()
    with pytest.raises(InputError, match=r"without gaps: .* lacks 00008\.jpg"):
        build_ytvos_index(folder)
    (root / "ytvos.csv").write_text("aa,7\n")
    with pytest.raises(InputError, match=r"Line 1 of the frame list .* is 'aa,7'"):
        read_ytvos_index(root / "ytvos.csv")
    with pytest.raises(InputFileError, match="vss2 data ytvos-index"):
        read_ytvos_index(root / "none.csv")
