"""Reading a checkpoint on several ranks: one reads first, all have the same or the same error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import nn

from vss2 import checkpoint_io
from vss2.checkpoint import VideoCheckpointer, load_weights
from vss2.checkpoint_io import failing_together
from vss2.d2.utils import comm
from vss2.engine.launch import launch
from vss2.errors import InputError, InputFileError


def error_of(call, *args, **kwargs) -> list[str]:
    try:
        call(*args, **kwargs)
    except InputError as e:
        return [type(e).__name__, str(e)]
    return []


def on_each_rank(folder: Path) -> None:
    """Everything that the test below compares, written to <folder>/rank<N>.json."""
    torch.set_num_threads(1)
    rank = comm.get_rank()
    # Each rank has a disk of its own, as machines without a shared folder do.
    disk = folder / f"disk{rank}"
    here = checkpoint_io.local_path
    checkpoint_io.local_path = lambda path: here(_on(disk, path))
    checkpoint_io._fingerprint = _on_disk(disk, checkpoint_io._fingerprint)
    reads: list[str] = []
    read = checkpoint_io.read_checkpoint

    def counted(path, trust=False):
        reads.append(Path(path).name)
        return read(path, trust)

    checkpoint_io.read_checkpoint = counted
    found: dict[str, object] = {}

    def loaded(name: str) -> float:
        layer = nn.Linear(2, 2)
        load_weights(layer, name, collective=True)
        return float(layer.weight[0, 0])

    found["everywhere"] = loaded("both.pth")
    found["on rank 0 only"] = loaded("first.pth")
    found["another there"] = loaded("differs.pth")
    found["on rank 1 only"] = error_of(loaded, "second.pth")
    found["damaged"] = error_of(loaded, "damaged.pth")
    found["reads"] = reads[:]

    layer = nn.Linear(2, 2)
    checkpointer = VideoCheckpointer(layer, str(folder / "run"))
    found["resumed"] = [checkpointer.resume(), float(layer.weight[0, 0])]
    (folder / "empty").mkdir(exist_ok=True)
    found["nothing"] = VideoCheckpointer(layer, str(folder / "empty")).resume()

    def one_fails() -> None:
        with failing_together():
            if rank == 1:
                raise InputFileError("the disk of rank 1 is full")

    found["together"] = error_of(one_fails)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


def _on(disk: Path, path) -> Path:
    return disk / Path(path).name if Path(path).parent.name != "run" else Path(path)


def _on_disk(disk: Path, function):
    return lambda path: function(_on(disk, path))


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2, 2), value), "bias": torch.zeros(2)}


def test_two_ranks_read_alike(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    disks = [tmp_path / "disk0", tmp_path / "disk1"]
    for disk in disks:
        disk.mkdir()
    torch.save(weights(1), disks[0] / "both.pth")
    shutil.copy(disks[0] / "both.pth", disks[1])
    torch.save(weights(2), disks[0] / "first.pth")
    torch.save(weights(3), disks[0] / "differs.pth")
    torch.save(weights(4), disks[1] / "differs.pth")
    torch.save(weights(5), disks[1] / "second.pth")
    for disk in disks:
        (disk / "damaged.pth").write_bytes((disks[0] / "both.pth").read_bytes()[:-9])
    (tmp_path / "run").mkdir()
    layer = nn.Linear(2, 2)
    for value, name in ((6.0, "model_0000001"), (7.0, "model_0000003")):
        nn.init.constant_(layer.weight, value)
        VideoCheckpointer(layer, str(tmp_path / "run")).save(name)
    (tmp_path / "run" / "model_0000003.pth").write_bytes(b"")

    launch(on_each_rank, (tmp_path,), num_gpus=2)
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    reads = [one.pop("reads") for one in found]
    assert found[0] == found[1]
    assert found[0]["everywhere"] == 1
    assert found[0]["on rank 0 only"] == 2
    assert found[0]["another there"] == 3
    assert found[0]["on rank 1 only"][0] == "InputFileError"
    assert "second.pth does not exist" in found[0]["on rank 1 only"][1]
    assert "is truncated" in found[0]["damaged"][1]
    assert found[0]["resumed"] == [str(tmp_path / "run" / "model_0000001.pth"), 6]
    assert found[0]["nothing"] == ""
    assert found[0]["together"] == ["InputFileError", "the disk of rank 1 is full"]
    # Rank 1 reads what it sees to be the same; what rank 0 cannot read it does not try.
    assert reads == [["both.pth", "first.pth", "differs.pth", "damaged.pth"], ["both.pth"]]
