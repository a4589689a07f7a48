"""DetectionCheckpointer and fvcore's checkpointers."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vss2.d2.checkpoint import Checkpointer, DetectionCheckpointer, PeriodicCheckpointer
from vss2.d2.utils import PathManager


class Net(nn.Module):
    def __init__(self, out=2):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4))
        self.head = nn.Linear(4, out)
        self.register_buffer("pixel_mean", torch.zeros(3))
        self.register_buffer("pixel_std", torch.ones(3))


def filled(value, **kwargs):
    net = Net(**kwargs)
    for parameter in net.parameters():
        nn.init.constant_(parameter, value)
    return net


def optimizer_of(net):
    return torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)


def weights(net):
    return {name: float(p.detach().mean()) for name, p in net.named_parameters()}


def saved(tmp_path, content, name="w.pth"):
    path = str(tmp_path / name)
    torch.save(content, path)
    return path


def test_save_and_resume(tmp_path):
    net = filled(2.0)
    checkpointer = DetectionCheckpointer(net, str(tmp_path), optimizer=optimizer_of(net))
    assert not checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file() == ""
    checkpointer.save("model_0000009", iteration=9)
    path = tmp_path / "model_0000009.pth"
    assert (tmp_path / "last_checkpoint").read_text() == path.name
    assert set(torch.load(path)) == {"model", "optimizer", "iteration"}
    assert checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file() == str(path)
    assert checkpointer.get_all_checkpoint_files() == [str(path)]

    other = filled(0.0)
    optimizer = torch.optim.SGD(other.parameters(), lr=9.0)
    again = DetectionCheckpointer(other, str(tmp_path), optimizer=optimizer)
    extra = again.resume_or_load("this path is not used", resume=True)
    assert extra["iteration"] == 9
    assert set(weights(other).values()) == {2.0}
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_load_without_resume_takes_the_model_only(tmp_path):
    net = filled(2.0)
    DetectionCheckpointer(net, str(tmp_path), optimizer=optimizer_of(net)).save("a", iteration=3)
    other = filled(0.0)
    optimizer = torch.optim.SGD(other.parameters(), lr=9.0)
    again = DetectionCheckpointer(other, str(tmp_path), optimizer=optimizer)
    extra = again.resume_or_load(str(tmp_path / "a.pth"), resume=False)
    assert set(weights(other).values()) == {2.0}
    assert optimizer.param_groups[0]["lr"] == 9.0
    assert extra["iteration"] == 3
    assert "optimizer" in extra, "what was not loaded is left over"


def test_nothing_to_load(tmp_path):
    net = filled(1.0)
    assert DetectionCheckpointer(net, str(tmp_path)).resume_or_load("", resume=True) == {}
    assert DetectionCheckpointer(net).load("") == {}
    with pytest.raises(AssertionError, match="not found"):
        DetectionCheckpointer(net).load(str(tmp_path / "absent.pth"))


def test_saving_is_a_no_op_without_folder_or_off_the_main_process(tmp_path):
    DetectionCheckpointer(filled(1.0)).save("a")
    DetectionCheckpointer(filled(1.0), str(tmp_path), save_to_disk=False).save("a")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        DetectionCheckpointer(filled(1.0), str(tmp_path / "absent")).save("a")


def test_data_parallel_is_taken_off(tmp_path):
    net = filled(3.0)
    assert DetectionCheckpointer(nn.DataParallel(net)).model is net
    path = saved(tmp_path, {"model": {f"module.{k}": v for k, v in net.state_dict().items()}})
    other = filled(0.0)
    DetectionCheckpointer(other).load(path)
    assert set(weights(other).values()) == {3.0}


def test_other_shapes_missing_and_unexpected_keys_are_logged(tmp_path, caplog):
    state = filled(3.0, out=5).state_dict()
    state["stray"] = torch.zeros(1)
    del state["backbone.0.bias"]
    net = filled(0.0)
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(net).load(saved(tmp_path, {"model": state}))
    found = weights(net)
    assert found["backbone.0.weight"] == 3.0
    assert found["backbone.0.bias"] == found["head.weight"] == found["head.bias"] == 0.0
    assert "head.weight" in caplog.text
    assert "(5, 4)" in caplog.text
    assert "(2, 4)" in caplog.text
    assert "stray" in caplog.text
    assert "backbone.0" in caplog.text


def test_constants_and_old_anchors_are_not_reported(tmp_path, caplog):
    state = filled(3.0).state_dict()
    del state["pixel_mean"], state["pixel_std"]
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(1)
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(filled(0.0)).load(saved(tmp_path, {"model": state}))
    assert "pixel_mean" not in caplog.text
    assert "cell_anchors" not in caplog.text


def test_a_bare_state_dict(tmp_path):
    net = filled(0.0)
    DetectionCheckpointer(net).load(saved(tmp_path, filled(4.0).state_dict()))
    assert set(weights(net).values()) == {4.0}
    wrapped = saved(tmp_path, {"state_dict": filled(4.0).state_dict()}, "wrapped.pth")
    with pytest.raises(ValueError, match="Unsupported type found in checkpoint"):
        DetectionCheckpointer(filled(0.0)).load(wrapped)


def test_model_zoo_pickles(tmp_path):
    state = {k: v.numpy() for k, v in filled(5.0).state_dict().items()}
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        path = tmp_path / f"zoo{protocol}.pkl"
        content = {"model": state, "__author__": "someone", "scale": np.float32(2)}
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        net = filled(0.0)
        extra = DetectionCheckpointer(net).load(str(path))
        assert set(weights(net).values()) == {5.0}
        assert float(extra["scale"]) == 2.0


def test_matching_heuristics(tmp_path):
    short = {k.removeprefix("backbone."): v for k, v in filled(6.0).state_dict().items()}
    path = saved(tmp_path, {"model": short})
    net = filled(0.0)
    DetectionCheckpointer(net).load(path + "?matching_heuristics=True")
    assert set(weights(net).values()) == {6.0}
    net = filled(0.0)
    DetectionCheckpointer(net).load(path)
    assert weights(net)["backbone.0.weight"] == 0.0
    with pytest.raises(ValueError, match="query"):
        DetectionCheckpointer(net).load(path + "?other=1")


def test_pycls_files(tmp_path):
    state = dict(filled(7.0).state_dict())
    path = saved(tmp_path, {"model_state": state}, "pycls.pyth")
    net = filled(0.0)
    DetectionCheckpointer(net).load(path)
    assert set(weights(net).values()) == {7.0}


def test_checkpointables(tmp_path):
    checkpointer = DetectionCheckpointer(filled(1.0), str(tmp_path))
    checkpointer.add_checkpointable("second", filled(2.0))
    with pytest.raises(KeyError):
        checkpointer.add_checkpointable("second", filled(2.0))
    with pytest.raises(TypeError):
        checkpointer.add_checkpointable("third", object())
    checkpointer.save("a")
    assert set(torch.load(tmp_path / "a.pth")) == {"model", "second"}
    checkpointer.tag_last_checkpoint("b.pth")
    assert Path(checkpointer.get_checkpoint_file()).name == "b.pth"


def test_paths_go_through_the_projects_path_manager():
    checkpointer = DetectionCheckpointer(filled(1.0))
    assert checkpointer.path_manager is PathManager
    assert isinstance(checkpointer, Checkpointer)


def test_periodic_checkpointer(tmp_path):
    checkpointer = DetectionCheckpointer(filled(1.0), str(tmp_path))
    periodic = PeriodicCheckpointer(checkpointer, period=2, max_iter=6, max_to_keep=2)
    for iteration in range(6):
        periodic.step(iteration)
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {"model_0000003.pth", "model_0000005.pth", "model_final.pth"}
    assert torch.load(tmp_path / "model_0000003.pth")["iteration"] == 3
