from __future__ import annotations

import cv2

from vss2.cli import prepare_data
from vss2.data.datasets.vspw import load_vspw

SMALL = ["toy", "--num-train", "2", "--num-val", "1", "--size", "48", "64"]


def test_toy_is_made_where_it_is_wanted(tmp_path, capsys):
    folder, sheet = tmp_path / "toy", tmp_path / "sheet.png"
    assert prepare_data.main([*SMALL, "--output", str(folder), "--preview", str(sheet)]) == 0
    videos = load_vspw(folder, "train")
    out = capsys.readouterr().out
    assert str(folder) in out
    assert f"train: 2 videos, {sum(len(v['frames']) for v in videos)} frames" in out
    assert "val: 1 videos" in out
    assert "12 classes: sky, wall" in out
    picture = cv2.imread(str(sheet))
    assert picture.shape[1] > 5 * 192
    assert picture.std() > 20


def test_default_place_is_named_by_its_parameters(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VSS2_DATASETS", str(tmp_path))
    assert prepare_data.main([*SMALL, "--seed", "1"]) == 0
    assert prepare_data.main([*SMALL, "--seed", "2"]) == 0
    names = sorted(p.name for p in tmp_path.iterdir())
    out = capsys.readouterr().out
    assert len(names) == 2
    assert all(name.startswith("toy_world-") and name in out for name in names)


def test_a_second_call_uses_what_is_there(tmp_path, capsys):
    argv = [*SMALL, "--output", str(tmp_path / "toy")]
    assert prepare_data.main(argv) == 0
    stamp = (tmp_path / "toy" / "toy_world.json").stat().st_mtime_ns
    first = capsys.readouterr().out
    assert prepare_data.main(argv) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "toy" / "toy_world.json").stat().st_mtime_ns == stamp


def test_mistakes_are_one_line(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("x")
    assert prepare_data.main([*SMALL, "--output", str(tmp_path)]) == 2
    assert "no toy world" in capsys.readouterr().err
    assert prepare_data.main(["toy", "--num-train", "0"]) == 2
    assert capsys.readouterr().err.strip().startswith("error: toy world: num_train")


def test_chosen_frames_hold_a_damaged_one():
    assert prepare_data._choose(18, 5, [4, 9]) == [0, 4, 8, 13, 17]
    assert prepare_data._choose(18, 5, [7]) == [0, 4, 7, 13, 17]
    assert prepare_data._choose(18, 5, [16]) == [0, 4, 8, 16, 17]
    assert prepare_data._choose(3, 5, []) == [0, 1, 2]
