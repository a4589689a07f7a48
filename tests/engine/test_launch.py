"""Who has started this process, from the variables that it finds."""

from __future__ import annotations

import pytest

from vss2.engine.interrupt import InterruptGuard
from vss2.engine.launch import World, _own_gpu, find_world, first_node, restarted
from vss2.errors import InputError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "gpu01",
    "MASTER_PORT": "29400",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "123456",
}


def test_nobody_has_started_this_process() -> None:
    assert find_world(environment={}) is None
    assert find_world(environment={"WORLD_SIZE": "1", "RANK": "0"}) is None
    assert find_world(environment=SLURM) is None  # a shell of a SLURM job is no task


def test_torchrun() -> None:
    assert find_world(environment=TORCHRUN) == World("torchrun", 5, 8, 1, 4, "gpu01", 29400)
    assert find_world(environment={**TORCHRUN, **SLURM}).source == "torchrun"


def test_slurm() -> None:
    assert find_world("slurm", SLURM) == World("slurm", 5, 8, 1, 4, "gpu07", 23456)
    given = {**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}
    assert find_world("slurm", given)[-2:] == ("10.0.0.1", 4000)


@pytest.mark.parametrize(
    ("launcher", "environment", "message"),
    [
        ("auto", {"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set, but RANK, LOCAL_RANK"),
        ("auto", {**TORCHRUN, "RANK": "x"}, "RANK must be a whole number, got 'x'"),
        ("auto", {**TORCHRUN, "RANK": "8"}, "rank 8 of 8 and local rank 1 of 4, which cannot be"),
        ("auto", {**TORCHRUN, "WORLD_SIZE": "6"}, "6 processes cannot be 4 on every machine"),
        ("auto", {k: v for k, v in TORCHRUN.items() if k != "MASTER_PORT"}, "MASTER_PORT not set"),
        ("slurm", TORCHRUN, "SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID not set"),
        ("slurm", {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "5,3"}, "put 5,3 tasks on its nodes"),
    ],
)
def test_what_makes_no_sense_is_refused(launcher: str, environment, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_world(launcher, environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu07", "gpu07"),
        ("gpu[07-09,12],big1", "gpu07"),
        ("a1,a2", "a1"),
        ("rack[3,5]-x", "rack3-x"),
        ("n[10-11]", "n10"),
    ],
)
def test_first_node(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@pytest.mark.parametrize(("count", "answer"), [(None, False), ("0", False), ("2", True)])
def test_restarts(count: str | None, answer: bool) -> None:
    assert restarted({} if count is None else {"TORCHELASTIC_RESTART_COUNT": count}) is answer


def test_each_process_has_its_own_gpu(monkeypatch) -> None:
    torchrun, slurm = find_world(environment=TORCHRUN), find_world("slurm", SLURM)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert _own_gpu(torchrun) == 1
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert _own_gpu(slurm) == 0  # SLURM shows each task its own only
    with pytest.raises(InputError, match="4 processes on this machine need as many GPUs, it has 1"):
        _own_gpu(torchrun)


def test_a_signal_that_comes_twice_at_once_stops_once(monkeypatch) -> None:
    guard = InterruptGuard()
    times = iter([10.0, 10.2, 12.0])
    monkeypatch.setattr("vss2.engine.interrupt.time.monotonic", lambda: next(times))
    guard._handle(2, None)
    guard._handle(2, None)  # torchrun passes on what the terminal has sent already
    assert guard.requested
    with pytest.raises(KeyboardInterrupt):
        guard._handle(2, None)
