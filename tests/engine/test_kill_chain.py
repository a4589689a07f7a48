"""A run that is killed and resumed ends as one that was never interrupted, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from .conftest import TINY, assert_same, read_metrics
from .forkserver import ForkServer

INTERRUPTED = 130
KILLED = -9
OPTIONS = (
    "train.max_iter=16",
    "train.best_metric=sem_seg/aAcc",
    "train.checkpointer.max_to_keep=3",
)


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as running:
        yield running


class Kill(NamedTuple):
    """What ends one process of the chain, and what it must leave."""

    workers: int
    fault: dict[str, str]
    code: int
    newest: str  # the tagged checkpoint afterwards
    leaves: tuple[str, ...] = ()  # files beyond whole checkpoints


def save(point: str, file: str, action: str = "kill") -> dict[str, str]:
    return {"TINY_FAULT": f"{point}:{file}:{action}"}


# A checkpoint every 2 iterations, an evaluation every 5: after 4, 9, 14, and at the end.
CHAIN = (
    Kill(0, {"TINY_KILL_AT": "3"}, KILLED, "model_0000001.pth"),
    Kill(2, save("write", "model_best.pth"), KILLED, "model_0000003.pth", ("best.pth.tmp",)),
    Kill(0, save("sync", "best_checkpoint.json"), KILLED, "model_0000003.pth", ("json.tmp",)),
    Kill(2, save("write", "model_0000005.pth"), KILLED, "model_0000003.pth", ("5.pth.tmp",)),
    Kill(0, save("sync", "model_0000005.pth"), KILLED, "model_0000003.pth", ("5.pth.tmp",)),
    Kill(2, save("rename", "model_0000007.pth"), KILLED, "model_0000005.pth", ("7.pth.tmp",)),
    Kill(0, save("renamed", "model_0000007.pth"), KILLED, "model_0000005.pth", ("7.pth",)),
    Kill(2, save("write", "last_checkpoint"), KILLED, "model_0000005.pth", ("7.pth", "int.tmp")),
    Kill(0, save("rename", "last_checkpoint"), KILLED, "model_0000005.pth", ("int.tmp",)),
    Kill(2, save("evaluate", "9"), KILLED, "model_0000009.pth"),
    Kill(0, {"TINY_SIGINT_AT": "12"}, INTERRUPTED, "model_0000012.pth"),
    Kill(2, {"TINY_KILL_AT": "14"}, KILLED, "model_0000013.pth"),
    Kill(0, save("renamed", "model_final.pth"), KILLED, "model_0000015.pth", ("final.pth",)),
    Kill(2, save("evaluate", "16"), KILLED, "model_final.pth"),
)


def test_chain_of_kills_ends_in_the_same_bits(server, tiny_process, tmp_path: Path) -> None:
    whole, chain = tmp_path / "whole", tmp_path / "chain"
    straight = tiny_process(whole, *OPTIONS)  # in a process of its own, from the command line
    assert straight.returncode == 0, straight.stderr

    log = tmp_path / "log"
    command = ["--config-file", str(TINY), f"train.output_dir={chain}", *OPTIONS, "--resume"]
    for number, kill in enumerate(CHAIN):
        workers = f"dataloader.train.num_workers={kill.workers}"
        code = server.run([*command, workers], log, **kill.fault)
        text = log.read_text()
        assert code == kill.code, (number, text)
        assert (chain / "last_checkpoint").read_text() == kill.newest, (number, text)
        names = [path.name for path in chain.iterdir()]
        for ending in kill.leaves:
            assert any(name.endswith(ending) for name in names), (number, names)

    last = tiny_process(chain, *OPTIONS, "--resume")
    assert last.returncode == 0, last.stderr
    assert "resuming from" in last.stdout

    for name in ("model_final.pth", "model_best.pth"):
        assert_same(torch.load(whole / name), torch.load(chain / name))
    final = torch.load(chain / "model_final.pth")
    assert final["data"] == {"seed": 7, "batches": 16}
    best = json.loads((chain / "best_checkpoint.json").read_text())
    assert best == json.loads((whole / "best_checkpoint.json").read_text())
    assert read_metrics(whole)[-1]["sem_seg/aAcc"] == read_metrics(chain)[-1]["sem_seg/aAcc"]
    files = [sorted(path.name for path in folder.glob("*.pth")) for folder in (whole, chain)]
    assert files[0][:3] == ["model_0000011.pth", "model_0000013.pth", "model_0000015.pth"]
    assert set(files[1]) - set(files[0]) <= {"model_0000012.pth"}
    assert not list(chain.glob("*.tmp"))

    again = server.run(command, log)
    assert again == 0
    assert "already finished" in log.read_text()
    assert "Starting training" not in log.read_text()


def test_ctrl_c_in_an_evaluation_saves_and_resumes(server, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    command = ["--config-file", str(TINY), f"train.output_dir={folder}"]
    assert server.run(command, log, TINY_SIGINT_IN_EVAL="1") == INTERRUPTED, log.read_text()
    assert "stopped after 5 of 12" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert (folder / "last_checkpoint").read_text() == "model_0000004.pth"
    assert server.run([*command, "--resume"], log) == 0
    assert "sem_seg/aAcc" in read_metrics(folder)[-1]


@pytest.mark.parametrize(
    ("point", "action", "reason"),
    [
        ("write", "ENOSPC", "No space left on device"),
        ("sync", "ENOSPC", "No space left on device"),
        ("open", "EROFS", "Read-only file system"),
        ("rename", "EROFS", "Read-only file system"),
    ],
)
@pytest.mark.parametrize("file", ["model_0000003.pth", "last_checkpoint"])
def test_a_disk_that_refuses_ends_in_one_line_and_costs_nothing(
    server, tmp_path: Path, point: str, action: str, reason: str, file: str
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    command = ["--config-file", str(TINY), f"train.output_dir={folder}", "train.max_iter=6"]
    assert server.run(command, log, TINY_KILL_AT="3") == KILLED
    before = {p.name: p.read_bytes() for p in folder.iterdir() if "checkpoint" in p.name}
    good = (folder / "model_0000001.pth").read_bytes()
    code = server.run([*command, "--resume"], log, TINY_FAULT=f"{point}:{file}:{action}")
    text = log.read_text()
    assert code == 2, text
    assert [line for line in text.splitlines() if line.startswith("error:")] == [
        f"error: cannot write {folder / file}: {reason}"
    ]
    assert "Traceback" not in text
    assert (folder / "model_0000001.pth").read_bytes() == good
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name in before} == before
    assert not list(folder.glob("*.tmp"))
    assert server.run([*command, "--resume"], log) == 0
