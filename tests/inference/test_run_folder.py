from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from vss2.d2.config import LazyCall as L
from vss2.data.transforms import TestResize
from vss2.errors import InputError, InputFileError
from vss2.inference.run_folder import RunFolder, config_values, file_digest

IDENTITY = {"weights": "ab" * 32, "options": {"every": 1}, "outputs": ["labels", "overlay.mp4"]}


def _begun(path, count=2, **options):
    folder = RunFolder(path)
    assert folder.begin(IDENTITY, **options) == "new"
    (path / "labels").mkdir()
    for k in range(count):
        (path / "labels" / f"{k}.png").write_bytes(b"png")
    return folder


def _completed(path):
    folder = _begun(path)
    (path / "overlay.mp4").write_bytes(b"film")
    folder.complete(2)
    return folder


def _changed(**options):
    return IDENTITY | {"options": options}


def test_an_unfinished_run_is_resumed_with_the_same_identity_only(tmp_path):
    path = tmp_path / "deep" / "out"
    _begun(path)
    with pytest.raises(InputError, match=r"an unfinished run: go on with it \(--resume\)"):
        RunFolder(path).begin(IDENTITY)
    with pytest.raises(InputError, match="another run: options every was 1, is 2"):
        RunFolder(path).begin(_changed(every=2), resume=True)
    other = IDENTITY | {"weights": "cd" * 32}
    with pytest.raises(InputError, match="another run: another weights"):
        RunFolder(path).begin(other, resume=True)
    with pytest.raises(InputError, match="options new was null, is 3"):
        RunFolder(path).begin(_changed(every=1, new=3), resume=True)
    assert len(list((path / "labels").iterdir())) == 2
    assert RunFolder(path).begin(IDENTITY, resume=True) == "resumed"


def test_a_complete_run(tmp_path):
    _completed(tmp_path)
    with pytest.raises(InputError, match="a complete run: choose another folder"):
        RunFolder(tmp_path).check()
    again = RunFolder(tmp_path)
    assert again.begin(IDENTITY, resume=True) == "complete"
    assert again.frames() == 2
    (tmp_path / "overlay.mp4").unlink()
    assert RunFolder(tmp_path).begin(IDENTITY, resume=True) == "resumed"


def test_a_complete_run_that_lost_a_frame_is_not_complete(tmp_path):
    _completed(tmp_path)
    (tmp_path / "labels" / "1.png").unlink()
    assert RunFolder(tmp_path).begin(IDENTITY, resume=True) == "resumed"


def test_resume_of_nothing_begins(tmp_path):
    assert RunFolder(tmp_path / "out").begin(IDENTITY, resume=True) == "new"


def test_overwrite_removes_the_earlier_run_and_nothing_else(tmp_path):
    _completed(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert RunFolder(tmp_path).begin(_changed(every=5), overwrite=True) == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "predict.json"]


def test_results_of_unknown_origin_are_kept(tmp_path):
    (tmp_path / "overlay.mp4").write_bytes(b"film")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"unknown run \(overlay\.mp4\).*--overwrite"):
            RunFolder(tmp_path).check(resume=resume)
    RunFolder(tmp_path).check(overwrite=True)
    assert (tmp_path / "overlay.mp4").exists()


def test_what_is_not_ours_is_never_replaced(tmp_path):
    (tmp_path / "rle").mkdir()
    (tmp_path / "rle" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"rle holds more than \*\.json"):
        RunFolder(tmp_path).check(overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        RunFolder(tmp_path / "rle" / "mine.txt").check(overwrite=True)
    with pytest.raises(InputError, match="Cannot write"):
        RunFolder(tmp_path / "rle" / "mine.txt" / "out").begin(IDENTITY)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}', '{"version": 1}'])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "predict.json").write_text(text)
    with pytest.raises(InputError, match=r"predict\.json is not a manifest"):
        RunFolder(tmp_path).check(resume=True)


def test_a_run_without_any_frame_leaves_nothing(tmp_path):
    folder = _begun(tmp_path / "deep" / "out", count=0)
    (tmp_path / "deep" / "out" / ".overlay.partial-1.mp4").write_bytes(b"film")
    folder.abandon()
    assert list(tmp_path.iterdir()) == []
    folder = _begun(tmp_path / "deep" / "out", count=1)
    folder.abandon()
    assert (tmp_path / "deep" / "out" / "predict.json").exists()


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    _begun(tmp_path)
    leftovers = [tmp_path / ".overlay.partial-77.mp4", tmp_path / "labels" / ".2.png.77.tmp"]
    for path in leftovers:
        path.write_bytes(b"part")
    assert RunFolder(tmp_path).begin(IDENTITY, resume=True) == "resumed"
    assert not any(path.exists() for path in leftovers)
    assert len(list((tmp_path / "labels").iterdir())) == 2


def test_a_run_from_a_pipe_is_not_said_to_be_resumable(tmp_path):
    _begun(tmp_path, resumable=False)
    with pytest.raises(InputError, match="unfinished run: choose another"):
        RunFolder(tmp_path).check()
    document = json.loads((tmp_path / "predict.json").read_text())
    assert (document["status"], document["resumable"]) == ("unfinished", False)


def _config(**changes):
    cfg = OmegaConf.create(flags={"allow_objects": True})
    cfg.train = {"output_dir": changes.pop("output_dir", "a")}
    cfg.model = L(TestResize)(depth=2, norm="BN", sizes=[1, 2], act=len, **changes)
    cfg.dataloader = {"test": {"mapper": {"resize": L(TestResize)(scale=[64, 48])}}}
    return cfg


def test_config_values_are_those_that_decide_on_labels():
    values = config_values(_config())
    assert values["model.depth"] == 2
    assert values["model.act"] == "builtins.len"
    assert values["dataloader.test.mapper.resize.scale"] == [64, 48]
    assert values == config_values(_config(output_dir="b"))
    assert values != config_values(_config(dropout=0.1))
    json.dumps(values)


def test_file_digest(tmp_path):
    (tmp_path / "w").write_bytes(b"abc")
    assert file_digest(tmp_path / "w").startswith("ba7816bf8f01cfea")
    with pytest.raises(InputFileError, match="Cannot read the file"):
        file_digest(tmp_path / "v")
