"""The dataset doctor finds every seeded fault by name, and nothing in a clean set."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from doctor_faults import FAULTS, VIDEO

from vss2.cli import prepare_data
from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.datasets import toy
from vss2.data.doctor import KINDS, check_dataset, check_folder
from vss2.data.image_io import write_image, write_label
from vss2.errors import InputError, InputFileError

SIZE = (48, 72)
NUM_CLASSES = 12


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A clean set: three training and two validation videos with classes 1..12, 0 and 255."""
    root = tmp_path_factory.mktemp("doctor") / "set"
    rng = np.random.default_rng(0)
    ids = np.array([*range(NUM_CLASSES + 1), 255], np.uint8)
    names = {"train": ["v0", "v1", "v2"], "val": ["w0", "w1"]}
    for name in [*names["train"], *names["val"]]:
        for index in range(5):
            stem = f"{index:08d}"
            image = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
            coarse = rng.permutation(np.resize(ids, 6 * 6)).reshape(6, 6)
            label = np.kron(coarse, np.ones((8, 12), np.uint8))
            write_image(root / "data" / name / "origin" / f"{stem}.jpg", image)
            write_label(root / "data" / name / "mask" / f"{stem}.png", label, [(9, 9, 9)] * 256)
    for split, videos in names.items():
        (root / f"{split}.txt").write_text("\n".join(videos) + "\n")
    classes = {"others": "0"} | {f"class{i}": str(i) for i in range(1, NUM_CLASSES + 1)}
    (root / "label_num_dic_final.json").write_text(json.dumps(classes))
    return root


@pytest.fixture
def root(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "set")


def test_a_clean_set_gives_no_alarm(clean):
    report = check_folder(clean, num_workers=0)
    assert (report.findings, report.errors) == ([], 0)
    assert (report.videos, report.frames, report.masks) == (5, 25, 25)
    assert "Nothing is wrong" in report.table()


def test_the_toy_world_gives_no_alarm(tmp_path):
    folder = toy.make_toy_world(toy.ToyWorld(num_train=2, num_val=2, size=(48, 64)), tmp_path / "t")
    assert check_folder(folder, num_workers=0).findings == []


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_by_name(name, root):
    fault = FAULTS[name]
    for seed in range(2):
        spoilt = shutil.copytree(root, root.parent / f"spoilt{seed}")
        fault.apply(spoilt, np.random.default_rng(seed))
        report = check_folder(spoilt, num_workers=0)
        assert set(report.counts()) == {fault.kind} | fault.also
        assert report.errors > 0
        messages = [f.message for f in report.findings if f.kind == fault.kind]
        assert any(fault.names in message for message in messages), messages
        assert all(f.video in (VIDEO, "v1x", "copy") for f in report.findings)


def test_all_faults_at_once_are_found(clean, tmp_path):
    """Each in a copy of the video of its own, so that none hides another."""
    together = {n: f for n, f in FAULTS.items() if f.kind.startswith(("image_", "label_"))}
    root = shutil.copytree(clean, tmp_path / "set")
    rng = np.random.default_rng(1)
    for number, fault in enumerate(together.values()):
        spoilt = shutil.copytree(clean, tmp_path / f"one{number}")
        fault.apply(spoilt, rng)
        shutil.move(spoilt / "data" / VIDEO, root / "data" / f"x{number}")
        with (root / "train.txt").open("a") as file:
            file.write(f"x{number}\n")
    found = set(check_folder(root, num_workers=0).counts())
    assert found == {fault.kind for fault in together.values()} | {"video_duplicate"}


def test_workers_find_the_same(root):
    for name in ("truncated image", "off by one", "duplicate video"):
        FAULTS[name].apply(root, np.random.default_rng(0))
    seen = []
    report = check_folder(
        root, num_workers=2, progress=lambda done, total: seen.append((done, total))
    )
    assert report.findings == check_folder(root, num_workers=0).findings
    assert seen[-1] == (30, 30)
    assert len(report.counts()) == 3


def test_one_split_alone(root):
    FAULTS["truncated image"].apply(root, np.random.default_rng(0))
    assert check_folder(root, "val", num_workers=0).findings == []
    assert check_folder(root, "train", num_workers=0).counts() == {"image_truncated": 1}


def test_a_split_without_masks_is_no_fault(root):
    for name in ("w0", "w1"):
        shutil.rmtree(root / "data" / name / "mask")
    report = check_folder(root, num_workers=0)
    assert report.findings == []
    assert report.masks == 15
    shutil.rmtree(root / "data" / "v0" / "mask")
    assert check_folder(root, num_workers=0).counts() == {"label_missing": 1}


def test_a_folder_that_no_list_names_is_a_warning(root, capsys):
    (root / "train.txt").write_text("v0\nv1\n")
    report = check_folder(root, num_workers=0)
    assert report.counts() == {"list_unlisted": 1}
    assert report.errors == 0
    assert prepare_data.main(["check", "--root", str(root), "--num-workers", "0"]) == 0
    assert "warning" in capsys.readouterr().out


def test_void_that_was_lowered_is_off_by_one(root):
    path = root / "data" / "v0" / "mask" / "00000000.png"
    label = np.full(SIZE, 3, np.uint8)
    label[:10] = 254
    write_label(path, label)
    (finding,) = check_folder(root, num_workers=0).findings
    assert finding.kind == "label_off_by_one"
    assert "void" in finding.message


def test_folders_that_cannot_be_checked_are_errors(root, tmp_path):
    with pytest.raises(InputFileError, match="no folder in VSPW's layout"):
        check_folder(tmp_path / "nowhere")
    with pytest.raises(InputFileError, match=r"test\.txt"):
        check_folder(root, "test")
    with pytest.raises(InputError, match="number of workers"):
        check_folder(root, num_workers=-1)
    (root / "label_num_dic_final.json").write_text("[1]")
    with pytest.raises(InputError, match="label_num_dic_final"):
        check_folder(root, num_workers=0)


def test_registered_sets_by_name(root, monkeypatch):
    monkeypatch.setenv("VSS2_DATASETS", str(root.parent))
    os.rename(root, root.parent / "VSPW_480p")
    assert check_dataset("vspw_train", num_workers=0).findings == []
    with pytest.raises(InputError, match="Did you mean"):
        check_dataset("vspw_trian")


def test_sets_of_other_layouts_are_checked_from_their_video_dicts(root):
    def videos():
        folder = root / "data" / "v0"
        frames = [
            {
                "file_name": str(folder / "origin" / f"{i:08d}.jpg"),
                "label_file": str(folder / "mask" / f"{i:08d}.png") if i != 3 else None,
                "frame_index": i,
            }
            for i in range(5)
        ]
        return [
            {"video_id": "a", "frames": frames},
            {"video_id": "a", "frames": frames[:2]},
            {"video_id": "empty", "frames": []},
            {"video_id": "back", "frames": frames[::-1]},
        ]

    DatasetCatalog.register("doctor_own", videos)
    MetadataCatalog.get("doctor_own").set(
        stuff_classes=[f"c{i}" for i in range(NUM_CLASSES)], label_mapping="ids"
    )
    try:
        report = check_dataset("doctor_own", num_workers=0)
    finally:
        DatasetCatalog.remove("doctor_own")
    # As class ids from 0, the stored 12 is one too high; 'back' holds the frames of 'a'.
    assert report.counts() == {
        "label_off_by_one": 8,
        "video_empty": 1,
        "frame_order": 2,
        "video_duplicate": 1,
        "list_duplicate": 1,
    }


def test_the_command_prints_a_table_writes_json_and_fails(root, tmp_path, capsys):
    arguments = ["check", "--root", str(root), "--num-workers", "0"]
    assert prepare_data.main(arguments) == 0
    FAULTS["anti-aliased palette"].apply(root, np.random.default_rng(0))
    FAULTS["extra label"].apply(root, np.random.default_rng(0))
    assert prepare_data.main([*arguments, "--json", str(tmp_path / "report.json")]) == 1
    out = capsys.readouterr().out
    assert "label_anti_aliased" in out
    assert KINDS["label_extra"].meaning in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["counts"] == {"label_extra": 1, "label_anti_aliased": 1}
    assert report["errors"] == 2
    assert {f["severity"] for f in report["findings"]} == {"error"}
    assert all(os.path.exists(f["file"]) for f in report["findings"])
    assert prepare_data.main(["check", "--root", str(tmp_path / "none")]) == 2
    assert prepare_data.main(["check", "--dataset", "toy_train", "--split", "train"]) == 2
    assert "--split" in capsys.readouterr().err


def test_long_lists_are_cut_in_the_table_only(root):
    FAULTS["off by one"].apply(root, np.random.default_rng(0))
    report = check_folder(root, num_workers=0)
    assert len(report.as_dict()["findings"]) == 5
    assert "and 3 more" in report.table(per_kind=2)
