"""Which checkpoint of a run's folder a resume goes on from, whatever has happened to the files."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from vss2.checkpoint import VideoCheckpointer
from vss2.checkpoint_folder import (
    NOT_SAVED_YET,
    has_checkpoint,
    newest_good,
    periodic_files,
    start_afresh,
)
from vss2.checkpoint_io import check_archive
from vss2.errors import InputError, InputFileError


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path):
        self.target = str(target)

    def __reduce__(self):
        return (open, (self.target, "w"))


def model(value: float = 0.0) -> nn.Linear:
    layer = nn.Linear(300, 4)
    nn.init.constant_(layer.weight, value)
    return layer


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with the checkpoints of iterations 1, 3 and 5, whose weights are the iteration."""
    for age, iteration in enumerate((1, 3, 5)):
        name = f"model_{iteration:07d}"
        VideoCheckpointer(model(iteration), str(tmp_path)).save(name, iteration=iteration)
        os.utime(tmp_path / f"{name}.pth", (1000 + age, 1000 + age))
    VideoCheckpointer(model(9), str(tmp_path), tag=False).save("model_best")
    return tmp_path


@pytest.fixture
def log(caplog) -> pytest.LogCaptureFixture:
    logging.getLogger("vss2").propagate = True
    caplog.set_level(logging.INFO, logger="vss2")
    return caplog


def resumed(folder: Path) -> float:
    """The weight that a resume finds."""
    other = model(-1)
    checkpointer = VideoCheckpointer(other, str(folder))
    path = checkpointer.resume()
    assert path == str(folder / f"model_{int(other.weight[0, 0]):07d}.pth")
    assert checkpointer.saved_iteration == int(other.weight[0, 0])
    return float(other.weight[0, 0])


def newest(folder: Path) -> Path:
    return folder / "model_0000005.pth"


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x01
    path.write_bytes(content)


def test_the_tagged_file_is_taken_without_a_word(run: Path, log) -> None:
    assert resumed(run) == 5
    (run / "last_checkpoint").write_text("model_0000003.pth\n")
    assert resumed(run) == 3
    assert not [r for r in log.records if r.levelno >= logging.WARNING]


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "emptied": (lambda p: p.write_bytes(b""), r"5\.pth \(0 bytes\) is truncated"),
    "tail cut": (lambda p: p.write_bytes(p.read_bytes()[:-30]), r"is truncated"),
    "half": (lambda p: p.write_bytes(p.read_bytes()[:2000]), r"is truncated"),
    "one bit in a weight": (lambda p: flip(p, 3000), r"the bytes of its part .*data/0 have"),
    "gone": (lambda p: p.unlink(), r"names 'model_0000005\.pth', which is not there"),
    "text": (lambda p: p.write_text("hello"), r"5\.pth \(5 bytes\) is truncated"),
    "weights only": (lambda p: torch.save({"a": torch.ones(1)}, p), r"no checkpoint of a run"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint_is_passed_over(run: Path, log, kind: str) -> None:
    damage, reason = DAMAGE[kind]
    damage(newest(run))
    assert resumed(run) == 3
    warnings = " ".join(r.message for r in log.records if r.levelno >= logging.WARNING)
    assert "taking" in warnings
    assert "model_0000003.pth, the newest good checkpoint, instead" in warnings
    assert re.search(reason, warnings), warnings


def test_two_damaged_ones_and_then_none_is_good(run: Path, log) -> None:
    newest(run).write_bytes(b"PK\x03\x04")
    flip(run / "model_0000003.pth", 3000)
    assert resumed(run) == 1
    (run / "model_0000001.pth").write_bytes(b"")
    with pytest.raises(InputFileError, match=r"no checkpoint in .* can be used") as caught:
        resumed(run)
    for name in ("model_0000001.pth", "model_0000003.pth", "model_0000005.pth"):
        assert name in str(caught.value)
    assert "model_best.pth" not in str(caught.value)


@pytest.mark.parametrize(
    "tag", [None, "", "model_0000077.pth", "../elsewhere.pth", "\x00\xff", ".", "model_best"]
)
def test_a_missing_or_senseless_tag_means_the_newest(run: Path, log, tag: str | None) -> None:
    if tag is None:
        (run / "last_checkpoint").unlink()
    else:
        (run / "last_checkpoint").write_bytes(tag.encode("latin1"))
    assert resumed(run) == 5
    assert "last_checkpoint " in log.text
    assert "taking" in log.text


def test_nothing_there_is_no_error_but_a_tag_without_files_is(tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path)
    assert VideoCheckpointer(model(), str(tmp_path)).resume() == ""
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    with pytest.raises(InputFileError, match=r"names 'model_0000005.pth', which is not there"):
        VideoCheckpointer(model(), str(tmp_path)).resume()


def test_an_earlier_run_in_the_folder_is_not_resumed(run: Path) -> None:
    start_afresh(run)
    assert (run / "last_checkpoint").read_text() == NOT_SAVED_YET
    assert len(periodic_files(run)) == 3
    assert not has_checkpoint(run)
    assert VideoCheckpointer(model(), str(run)).resume() == ""
    VideoCheckpointer(model(2), str(run)).save("model_0000002", iteration=2)
    assert resumed(run) == 2


def test_evaluation_finds_the_newest_good_one_too(run: Path) -> None:
    def check(file: Path) -> None:
        check_archive(file, required=True)

    newest(run).write_bytes(b"")
    found = newest_good(run, check)
    assert found is not None
    assert found[0].name == "model_0000003.pth"


def test_a_checkpoint_that_would_run_code_ends_the_resume(run: Path) -> None:
    target = run / "owned"
    torch.save({"model": {}, "x": Payload(target)}, newest(run))
    with pytest.raises(InputError, match=r"could run code when loaded: .*open"):
        resumed(run)
    assert not target.exists()


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        VideoCheckpointer(model(4), str(tmp_path)).save("model_0000004", iteration=4)
    finally:
        torch.serialization.set_crc32_options(True)
    assert resumed(tmp_path) == 4


def test_a_failed_load_leaves_a_checkpointer_that_works(run: Path) -> None:
    layer = model(-1)
    checkpointer = VideoCheckpointer(layer, str(run))
    flip(run / "model_0000003.pth", 3000)
    for bad in ("none.pth", "model_0000003.pth"):
        with pytest.raises(InputError, match=bad):
            checkpointer.load(str(run / bad))
    assert float(layer.weight[0, 0]) == -1
    assert checkpointer.load(str(newest(run)))["iteration"] == 5
    assert float(layer.weight[0, 0]) == 5


def test_a_full_disk(run: Path) -> None:
    """/dev/full answers as a full disk does."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    checkpointer = VideoCheckpointer(model(), str(run))
    (run / "model_0000007.pth.tmp").symlink_to("/dev/full")
    with pytest.raises(InputFileError, match=r"model_0000007\.pth: No space left on device"):
        checkpointer.save("model_0000007", iteration=7)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert resumed(run) == 5


def test_a_folder_that_cannot_be_written(run: Path) -> None:
    checkpointer = VideoCheckpointer(model(), str(run))
    (run / "model_0000007.pth.tmp").mkdir()  # so that no file of that name can be made
    with pytest.raises(InputFileError, match=r"cannot write .*model_0000007\.pth: Is a directory"):
        checkpointer.save("model_0000007", iteration=7)
    assert (run / "last_checkpoint").read_text() == "model_0000005.pth"
    assert resumed(run) == 5
