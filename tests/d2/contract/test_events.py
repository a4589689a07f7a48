"""EventStorage and the writers."""

from __future__ import annotations

import json
import logging
import math
import re
import sys

import pytest
import torch

from vss2.d2.utils import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_storages_nest():
    assert not has_event_storage()
    with pytest.raises(AssertionError):
        get_event_storage()
    with EventStorage() as outer:
        assert get_event_storage() is outer
        with EventStorage(7) as inner:
            assert get_event_storage() is inner
            assert inner.iter == 7
        assert get_event_storage() is outer
    assert not has_event_storage()


def test_scalars_history_and_latest():
    storage = EventStorage(3)
    storage.put_scalar("loss", torch.tensor(2.0))
    storage.put_scalars(a=1, b=2, smoothing_hint=False)
    storage.step()
    storage.put_scalar("loss", 4)
    storage.put_scalar("late", 1.0, cur_iter=50)
    assert storage.history("loss").values() == [(2.0, 3), (4.0, 4)]
    assert type(storage.history("loss").latest()) is float
    assert storage.latest()["loss"] == (4.0, 4)
    assert storage.latest()["a"] == (1.0, 3)
    assert storage.latest()["late"] == (1.0, 50)
    assert set(storage.histories()) == {"loss", "a", "b", "late"}
    assert storage.smoothing_hints() == {"loss": True, "a": False, "b": False, "late": True}
    with pytest.raises(KeyError):
        storage.history("absent")
    storage.iter = 12
    assert storage.iter == 12


def test_a_name_has_one_hint():
    storage = EventStorage()
    storage.put_scalar("x", 1, smoothing_hint=False)
    with pytest.raises(AssertionError):
        storage.put_scalar("x", 1, smoothing_hint=True)


def test_name_scope():
    storage = EventStorage()
    with storage.name_scope("head"):
        storage.put_scalar("loss", 1)
    storage.put_scalar("loss", 2)
    assert storage.latest()["head/loss"][0] == 1
    assert storage.latest()["loss"][0] == 2


def test_smoothing_counts_iterations_not_samples():
    storage = EventStorage()
    for iteration, value in [(0, 100.0), (10, 100.0), (11, 1.0), (29, 2.0), (30, 3.0)]:
        storage.iter = iteration
        storage.put_scalar("x", value)
        storage.put_scalar("raw", value, smoothing_hint=False)
    assert storage.count_samples("x", 20) == 3  # iterations 11 to 30
    smooth = storage.latest_with_smoothing_hint(20)
    assert smooth["x"] == (2.0, 30)
    assert smooth["raw"] == (3.0, 30)


def test_json_writer(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"kept": 1}\n')
    writer = JSONWriter(str(path), window_size=20)
    with EventStorage() as storage:
        storage.put_scalar("z", 1.0)
        storage.put_scalar("a", 2.0)
        writer.write()
        writer.write()  # nothing new
        storage.step()
        storage.put_scalar("z", 3.0)
        storage.put_scalar("odd", math.nan, smoothing_hint=False)
        storage.put_scalar("late", 5.0, cur_iter=9)
        writer.write()
    writer.close()
    lines = path.read_text().splitlines()
    assert lines[0] == '{"kept": 1}'
    assert lines[1] == '{"a": 2.0, "iteration": 0, "z": 1.0}'
    assert '"odd": NaN' in path.read_text()
    by_iteration = {line["iteration"]: line for line in read_lines(path)[2:]}
    assert set(by_iteration) == {1, 9}
    assert by_iteration[1]["z"] == 2.0, "median of 1 and 3"
    assert by_iteration[9]["late"] == 5.0
    assert len(lines) == 4


def test_tensorboard_writer(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "board"
    writer = TensorboardXWriter(str(folder))
    assert not folder.exists(), "the event file is made at the first write"
    with EventStorage() as storage:
        storage.put_scalar("loss", 2.0)
        storage.put_image("shot", torch.zeros(3, 4, 5, dtype=torch.uint8))
        storage.put_histogram("weights", torch.linspace(0, 1, 100), bins=10)
        writer.write()
        storage.step()
        storage.put_scalar("loss", 4.0)
        writer.write()
    writer.close()
    read = EventAccumulator(str(folder)).Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(0, 2.0), (1, 3.0)]
    assert [e.step for e in read.Images("shot")] == [0], "an image is written once"
    (histogram,) = read.Histograms("weights")
    assert histogram.histogram_value.num == 100


def test_tensorboard_writer_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    writer = TensorboardXWriter(str(tmp_path))
    with EventStorage() as storage:
        storage.put_scalar("loss", 1.0)
        with pytest.raises(ImportError):
            writer.write()


def printed(caplog, max_iter=100, start=0, scalars=None):
    writer = CommonMetricPrinter(max_iter)
    caplog.clear()
    with EventStorage(start) as storage, caplog.at_level(logging.INFO):
        for name, value in (scalars or {}).items():
            storage.put_scalar(name, value, smoothing_hint=name != "lr")
        writer.write()
        return [record.getMessage() for record in caplog.records], storage


def test_metric_printer_line(caplog):
    scalars = {
        "loss_mask": 0.5,
        "total_loss": 1.25,
        "accuracy": 0.75,
        "[metric] fg": 0.125,
        "time": 2.0,
        "data_time": 0.5,
        "lr": 0.000123456,
    }
    (line,), storage = printed(caplog, max_iter=100, start=9, scalars=scalars)
    pattern = (
        r"^ *eta: 0:03:00 +iter: 9 +loss_mask: 0\.5 +total_loss: 1\.25 +\[metric\] fg: 0\.125 +"
        r"time: 2\.0000 +last_time: 2\.0000 +data_time: 0\.5000 +last_data_time: 0\.5000 +"
        r"lr: 0\.00012346 *(max_mem: \d+M)?$"
    )
    assert re.match(pattern, line), line
    assert "accuracy" not in line
    assert storage.latest()["eta_seconds"][0] == 180.0


def test_metric_printer_with_little_to_say(caplog):
    (line,), _ = printed(caplog, max_iter=None, scalars={"total_loss": 1.0})
    assert "eta" not in line
    assert "iter: 0" in line
    assert printed(caplog, max_iter=5, start=5, scalars={"total_loss": 1.0})[0] == []


def test_event_writer_is_a_base():
    with pytest.raises(NotImplementedError):
        EventWriter().write()
    assert EventWriter().close() is None
    for writer in (JSONWriter, TensorboardXWriter, CommonMetricPrinter):
        assert issubclass(writer, EventWriter)
