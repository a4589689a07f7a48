"""Each deliberate difference, with both sides held to what the table says."""

from __future__ import annotations

import builtins
import logging
import os
import pickle

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError
from torch import nn

from tests.d2.differential.differences import DIFFERENCES, REASON
from vss2.d2._embedded import checkpoint, config
from vss2.d2._embedded.utils import comm, events, file_io

real_config = pytest.importorskip("detectron2.config", reason=REASON)
real_checkpoint = pytest.importorskip("detectron2.checkpoint", reason=REASON)
real_comm = pytest.importorskip("detectron2.utils.comm", reason=REASON)
real_events = pytest.importorskip("detectron2.utils.events", reason=REASON)
real_file_io = pytest.importorskip("detectron2.utils.file_io", reason=REASON)


@pytest.fixture(autouse=True)
def own_import(monkeypatch):
    """Puts builtins.__import__ back, whatever a test leaves."""
    monkeypatch.setattr(builtins, "__import__", builtins.__import__)


def write(folder, name, text):
    (folder / name).write_text(text)
    return str(folder / name)


def test_import_is_restored_after_a_failing_config(tmp_path):
    path = write(tmp_path, "a.py", "x = 1 / 0")
    before = builtins.__import__
    for module, restored in ((config, True), (real_config, False)):
        with pytest.raises(ZeroDivisionError):
            module.LazyConfig.load(path)
        assert (builtins.__import__ is before) is restored


def test_names_that_a_relative_import_lacks(tmp_path):
    write(tmp_path, "base.py", "x = dict(a=1)")
    missing = write(tmp_path, "missing.py", "from .base import nothing")
    star = write(tmp_path, "star.py", "from .base import *")
    with pytest.raises(ImportError):
        config.LazyConfig.load(missing)
    assert config.LazyConfig.load(star).x.a == 1
    for path in (missing, star):
        with pytest.raises(KeyError):
            real_config.LazyConfig.load(path)


def test_sweeps_in_configs_that_hold_objects():
    def make():
        return OmegaConf.create({"x": 1}, flags={"allow_objects": True})

    with pytest.raises(ValidationError):
        config.LazyConfig.apply_overrides(make(), ["x=range(1,3)"])
    assert real_config.LazyConfig.apply_overrides(make(), ["x=range(1,3)"]).x.stop == 3


def test_saving_a_config_where_there_is_no_folder(tmp_path, caplog):
    cfg, path = OmegaConf.create({"x": 1}), str(tmp_path / "absent" / "a.yaml")
    with pytest.raises(OSError):
        config.LazyConfig.save(cfg, path)
    with caplog.at_level(logging.WARNING):
        real_config.LazyConfig.save(cfg, path)
    assert caplog.records


def test_checkpointer_after_a_failed_load(tmp_path):
    for module, usable in ((checkpoint, True), (real_checkpoint, False)):
        checkpointer = module.DetectionCheckpointer(nn.Linear(2, 2), str(tmp_path))
        checkpointer.save("good")
        with pytest.raises(AssertionError, match="not found"):
            checkpointer.load(str(tmp_path / "absent.pth"))
        if usable:
            assert checkpointer.load(str(tmp_path / "good.pth")) == {}
        else:
            with pytest.raises(AssertionError):
                checkpointer.load(str(tmp_path / "good.pth"))


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_pickled_checkpoints_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"model": {}, "__author__": "someone", "extra": Harmful()}
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.DetectionCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "bad.pkl"))
    assert not (tmp_path / "harm").exists()
    real_checkpoint.DetectionCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "bad.pkl"))
    assert (tmp_path / "harm").exists()


def test_caffe2_weights(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"blobs": {"fc_w": torch.ones(2, 2).numpy()}}))
    with pytest.raises(NotImplementedError):
        checkpoint.DetectionCheckpointer(nn.Linear(2, 2)).load(str(path))
    real_checkpoint.DetectionCheckpointer(nn.Linear(2, 2)).load(str(path))


def test_catalog_addresses():
    assert "catalog://" not in file_io.PathManager._path_handlers
    assert (
        "catalog://"
        in real_checkpoint.DetectionCheckpointer(nn.Linear(1, 1)).path_manager._path_handlers
    )
    assert "detectron2://" in file_io.PathManager._path_handlers
    assert "detectron2://" in real_file_io.PathManager._path_handlers


def test_time_left_without_a_timer(caplog):
    for module, has_eta in ((events, False), (real_events, True)):
        caplog.clear()
        printer = module.CommonMetricPrinter(max_iter=100)
        with module.EventStorage(0) as storage, caplog.at_level(logging.INFO):
            for _ in range(2):
                storage.put_scalar("total_loss", 1.0)
                printer.write()
                storage.step()
        assert ("eta" in caplog.text) is has_eta


def test_process_groups_belong_to_their_world(tmp_path, monkeypatch):
    monkeypatch.setattr(real_comm, "_LOCAL_PROCESS_GROUP", None)
    for module, again in ((comm, True), (real_comm, False)):
        for attempt in range(2):
            dist.init_process_group(
                "gloo", init_method=f"file://{tmp_path}/{again}{attempt}", rank=0, world_size=1
            )
            try:
                if attempt == 0 or again:
                    module.create_local_process_group(1)
                    assert module.get_local_size() == 1
                else:
                    with pytest.raises(AssertionError):
                        module.create_local_process_group(1)
            finally:
                dist.destroy_process_group()


def test_every_difference_has_its_test():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(DIFFERENCES) == tests - {"every_difference_has_its_test"}
    assert all(len(reason) > 20 for reason in DIFFERENCES.values())
