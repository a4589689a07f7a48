"""A disk that gives out: one sentence, whoever wrote when it did."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from vss2.d2.utils import JSONWriter
from vss2.engine import do_train, setup
from vss2.engine.failures import ShortErrors, disk_errors, stop_when_disk_is_full
from vss2.errors import InputError, InputFileError


def full(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_metrics_that_cannot_be_written_end_the_run_in_one_sentence(
    tiny_config, monkeypatch, tmp_path: Path
) -> None:
    cfg = tiny_config("train.max_iter=4")
    setup(cfg)
    monkeypatch.setattr(JSONWriter, "write", full)
    with pytest.raises(InputFileError, match=r"cannot write .*run: No space left on device"):
        do_train(cfg)
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000001.pth"
    text = (tmp_path / "run" / "log.txt").read_text()
    assert "No space left on device" in text
    assert "Traceback" not in text


def test_the_first_of_two_errors_is_told(tmp_path: Path) -> None:
    def fail() -> None:
        with disk_errors(tmp_path):
            try:
                raise InputError("the first")
            finally:
                full()

    with pytest.raises(InputError, match="the first"):
        fail()


def test_defects_stay_defects(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, disk_errors(tmp_path):
        (tmp_path / "none").read_text()
    assert not isinstance(caught.value, InputError)


def test_short_errors_keep_other_tracebacks() -> None:
    def record(error: Exception) -> logging.LogRecord:
        info = (type(error), error, None)
        return logging.LogRecord("x", logging.ERROR, "", 0, "ended at %d by:", (3,), info)

    mistake, defect = record(InputError("no such key")), record(KeyError("a"))
    assert ShortErrors().filter(mistake)
    assert ShortErrors().filter(defect)
    assert mistake.getMessage() == "ended at 3 by: no such key"
    assert mistake.exc_info is None
    assert defect.exc_info is not None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_log_on_a_full_disk_says_so_once(capsys) -> None:
    stream = open("/dev/full", "w")  # noqa: SIM115
    logger = logging.Logger("full")
    for _ in range(2):
        handler = logging.StreamHandler(stream)
        stop_when_disk_is_full(handler)
        logger.addHandler(handler)
    for _ in range(3):
        logger.warning("text")
    said = capsys.readouterr().err
    assert said == "the log ends here, cannot write /dev/full: No space left on device\n"
    assert stream.closed


def test_a_log_with_another_fault_keeps_its_traceback(capsys) -> None:
    handler = logging.StreamHandler()
    stop_when_disk_is_full(handler)
    logger = logging.Logger("wrong")
    logger.addHandler(handler)
    logger.warning("%d", "no number")
    assert "Logging error" in capsys.readouterr().err
