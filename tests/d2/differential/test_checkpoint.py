"""Checkpoints: the same file, read and written by either."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from tests.d2.differential.differences import REASON
from vss2.d2._embedded import checkpoint as embedded

real = pytest.importorskip("detectron2.checkpoint", reason=REASON)


def make_net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)))


def make_optimizer(net):
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def step(net, optimizer, seed):
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    loss = net(x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize(("writer", "reader"), [(embedded, real), (real, embedded)])
def test_a_run_goes_on_under_the_other_backend(tmp_path, writer, reader):
    net = make_net(0)
    optimizer = make_optimizer(net)
    for seed in range(3):
        step(net, optimizer, seed)
    writer.DetectionCheckpointer(net, str(tmp_path), optimizer=optimizer).save("a", iteration=2)
    expected = [step(net, optimizer, seed) for seed in range(3, 6)]

    net = make_net(1)
    optimizer = make_optimizer(net)
    checkpointer = reader.DetectionCheckpointer(net, str(tmp_path), optimizer=optimizer)
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 2
    assert [step(net, optimizer, seed) for seed in range(3, 6)] == expected


def test_saved_keys(tmp_path):
    keys = []
    for name, module in (("ours", embedded), ("theirs", real)):
        folder = tmp_path / name
        folder.mkdir()
        net = make_net(0)
        checkpointer = module.DetectionCheckpointer(net, str(folder), optimizer=make_optimizer(net))
        checkpointer.save("a", iteration=2)
        saved = torch.load(folder / "a.pth")
        keys.append((list(saved), list(saved["model"]), sorted(p.name for p in folder.iterdir())))
    assert keys[0] == keys[1]


def loaded(module, path):
    """Sum of the weights that a load brings, or the type of its error; and what is left over."""
    net = make_net(0)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    try:
        extra = module.DetectionCheckpointer(net).load(path)
    except Exception as error:
        return type(error)
    extra.pop("__author__", None)
    extra.pop("matching_heuristics", None)
    return [float(p.detach().sum()) for p in net.parameters()], sorted(extra)


def test_formats(tmp_path):
    state = make_net(5).state_dict()
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    torch.save({"model": state, "iteration": 3}, tmp_path / "whole.pth")
    torch.save(state, tmp_path / "bare.pth")
    torch.save({"state_dict": state}, tmp_path / "wrapped.pth")
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "parallel.pth")
    torch.save(
        {"model": {k.removeprefix("0."): v for k, v in state.items()}}, tmp_path / "ends.pth"
    )
    torch.save({"model_state": state}, tmp_path / "pycls.pyth")
    zoo = {"model": arrays, "__author__": "someone"}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(zoo))
    for name in (
        *("whole.pth", "bare.pth", "wrapped.pth", "parallel.pth", "ends.pth", "pycls.pyth"),
        *("zoo.pkl", "absent.pth", "ends.pth?matching_heuristics=True", "whole.pth?other=1"),
    ):
        path = str(tmp_path / name)
        assert loaded(embedded, path) == loaded(real, path), name
    assert loaded(embedded, "") == loaded(real, "")
