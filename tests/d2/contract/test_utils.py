"""Logging, seeding, files, pickling, memory."""

from __future__ import annotations

import inspect
import logging
import os
import pickle
import random
import re

import numpy as np
import pytest
import torch

from vss2.d2.utils import (
    PathManager,
    PicklableWrapper,
    create_small_table,
    file_io,
    log_every_n,
    log_every_n_seconds,
    log_first_n,
    retry_if_cuda_oom,
    seed_all_rng,
    serialize,
    setup_logger,
)


@pytest.fixture
def name():
    """A logger's name that only this test uses."""
    return "vss2_contract_" + os.urandom(4).hex()


def test_setup_logger_writes_to_screen_and_file(tmp_path, name, capsys):
    logger = setup_logger(str(tmp_path / "new"), name=name, abbrev_name="short")
    assert logger is logging.getLogger(name)
    assert logger.level == logging.DEBUG
    assert logger.propagate is False
    logging.getLogger(name + ".part").debug("hello")
    text = (tmp_path / "new" / "log.txt").read_text()
    assert re.search(r"\[\d\d/\d\d \d\d:\d\d:\d\d\]? " + name + r"\.part.*: hello", text)
    shown = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)
    assert re.match(r"\[\d\d/\d\d \d\d:\d\d:\d\d short\.part\]: .*hello", shown)


def test_setup_logger_does_it_once(tmp_path, name):
    first = setup_logger(str(tmp_path), name=name)
    handlers = list(first.handlers)
    assert setup_logger(str(tmp_path), name=name) is first
    assert first.handlers == handlers


def test_setup_logger_on_other_ranks(tmp_path, name, capsys):
    setup_logger(str(tmp_path / "run.log"), 2, name=name).warning("from two")
    assert "from two" in (tmp_path / "run.log.rank2").read_text()
    assert not (tmp_path / "run.log").exists()
    assert capsys.readouterr().out == ""


def test_setup_logger_options(name, capsys):
    logger = setup_logger(name=name, color=False, configure_stdout=False, enable_propagation=True)
    logger.info("quiet")
    assert logger.propagate is True
    assert capsys.readouterr().out == ""
    setup_logger(name=name + "plain", color=False).info("plain words")
    assert "\x1b[" not in capsys.readouterr().out


def test_log_first_n(caplog, name):
    with caplog.at_level(logging.INFO, logger=name):
        for step in range(5):
            log_first_n(logging.INFO, f"by line {step}", n=2, name=name)
        for _ in range(3):
            log_first_n(logging.INFO, "by text", name=name, key="message")
        log_first_n(logging.INFO, "by text", name=name, key="message")
        for step in range(2):
            log_first_n(logging.INFO, f"by both {step}", name=name, key=("caller", "message"))
    assert caplog.messages == ["by line 0", "by line 1", "by text", "by both 0", "by both 1"]


def test_log_every_n(caplog, name):
    with caplog.at_level(logging.INFO, logger=name):
        for step in range(7):
            log_every_n(logging.INFO, f"step {step}", n=3, name=name)
    assert caplog.messages == ["step 0", "step 3", "step 6"]


def test_log_every_n_seconds(caplog, name, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    with caplog.at_level(logging.INFO, logger=name):
        for step in range(5):
            log_every_n_seconds(logging.INFO, f"step {step}", n=10, name=name)
            now[0] += 6.0
    assert caplog.messages == ["step 0", "step 2", "step 4"]


def test_the_callers_module_names_the_logger(caplog):
    with caplog.at_level(logging.INFO):
        log_first_n(logging.INFO, "who")
    assert caplog.records[0].name == __name__


def test_create_small_table():
    head, line, row = create_small_table({"mIoU": 12.34567, "n": 3}).splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["mIoU", "n"]
    assert set(line) <= set("|:-")
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["12.346", "3"]


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seed_all_rng(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    seed_all_rng(5)
    first = draws()
    assert os.environ["PYTHONHASHSEED"] == "5"
    assert draws() != first
    seed_all_rng(5)
    assert draws() == first


def test_seed_all_rng_with_a_random_seed(monkeypatch, caplog):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    with caplog.at_level(logging.INFO):
        seed_all_rng()
    assert "seed" in caplog.text
    first = draws()
    seed_all_rng()
    assert draws() != first


def test_path_manager_serves_local_files(tmp_path):
    path = str(tmp_path / "folder" / "a.txt")
    PathManager.mkdirs(os.path.dirname(path))
    with PathManager.open(path, "w") as file:
        file.write("text")
    assert PathManager.isfile(path)
    assert PathManager.exists(path)
    assert PathManager.isdir(os.path.dirname(path))
    assert PathManager.ls(os.path.dirname(path)) == ["a.txt"]
    assert PathManager.get_local_path(path) == path
    with pytest.raises(FileNotFoundError):
        PathManager.open(str(tmp_path / "absent"))
    assert file_io.PathManager is PathManager


def test_path_manager_knows_detectron2s_addresses():
    """The prefix is served: another one is taken for a local path, and is not there."""
    handlers = PathManager._path_handlers
    assert {"http://", "https://", "detectron2://"} <= set(handlers)


def test_picklable_wrapper():
    offset = 3
    wrapped = PicklableWrapper(lambda x: x + offset)
    assert wrapped(1) == 4
    restored = pickle.loads(pickle.dumps(wrapped))
    assert restored(1) == 4
    twice = PicklableWrapper(PicklableWrapper({"a": 1}))
    assert twice.get("a") == 1
    assert serialize.PicklableWrapper is PicklableWrapper
    assert pickle.loads(pickle.dumps(twice)) == {"a": 1}


def oom():
    return RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_retry_if_cuda_oom_tries_three_times():
    calls = []

    @retry_if_cuda_oom
    def work(x, *, scale):
        """Documentation."""
        calls.append((x, scale))
        if len(calls) < 3:
            raise oom()
        return x * scale

    assert work(torch.ones(2), scale=3).tolist() == [3.0, 3.0]
    assert len(calls) == 3
    assert inspect.getdoc(work) == "Documentation."


def test_retry_if_cuda_oom_gives_up_and_lets_others_pass():
    def always():
        raise oom()

    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        retry_if_cuda_oom(always)()

    calls = []

    def other():
        calls.append(1)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        retry_if_cuda_oom(other)()
    assert len(calls) == 1
