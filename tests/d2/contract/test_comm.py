"""Communication: a world of one, and two processes over gloo."""

from __future__ import annotations

import datetime

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vss2.d2.utils import comm, seed_all_rng


def test_a_world_of_one():
    assert comm.get_world_size() == 1
    assert comm.get_rank() == 0
    assert comm.get_local_rank() == 0
    assert comm.get_local_size() == 1
    assert comm.is_main_process() is True
    assert comm.synchronize() is None
    data = {"x": object()}
    assert comm.all_gather(data) == [data]
    assert comm.gather(data, dst=0) == [data]
    reduced = {"a": torch.tensor(1.0)}
    assert comm.reduce_dict(reduced) == reduced


def test_the_shared_seed_follows_numpy():
    np.random.seed(3)
    first = comm.shared_random_seed()
    np.random.seed(3)
    assert comm.shared_random_seed() == first
    assert 0 <= first < 2**31


def test_the_local_group_must_be_made_first():
    with pytest.raises(AssertionError):
        comm.get_local_process_group()


def worker(rank: int, address: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=address,
        world_size=2,
        rank=rank,
        timeout=datetime.timedelta(seconds=60),
    )
    found = {"rank": comm.get_rank(), "world": comm.get_world_size()}
    found["main"] = comm.is_main_process()
    for name, call in [
        ("local rank before", comm.get_local_rank),
        ("split unevenly", lambda: comm.create_local_process_group(3)),
    ]:
        try:
            call()
        except AssertionError:
            found[name] = "AssertionError"
    comm.create_local_process_group(2)
    found["local"] = (comm.get_local_rank(), comm.get_local_size())
    try:
        comm.create_local_process_group(2)
    except AssertionError:
        found["made twice"] = "AssertionError"
    comm.synchronize()
    found["all"] = comm.all_gather({"from": rank})
    found["gathered"] = comm.gather(("item", rank), dst=0)
    seed_all_rng(rank)
    found["seed"] = int(comm.shared_random_seed())
    values = {"b": torch.tensor(float(rank)), "a": torch.tensor(10.0 * rank)}
    found["mean"] = {k: float(v) for k, v in comm.reduce_dict(values).items()}
    summed = comm.reduce_dict(values, average=False)
    found["sum"] = {k: float(v) for k, v in summed.items()}
    results[rank] = found
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(worker, args=(f"file://{tmp_path}/rendezvous", results), nprocs=2)
        zero, one = results[0], results[1]
    for rank, found in enumerate((zero, one)):
        assert (found["rank"], found["world"], found["main"]) == (rank, 2, rank == 0)
        assert found["local rank before"] == "AssertionError"
        assert found["split unevenly"] == "AssertionError"
        assert found["made twice"] == "AssertionError"
        assert found["local"] == (rank, 2)
        assert found["all"] == [{"from": 0}, {"from": 1}]
    assert zero["gathered"] == [("item", 0), ("item", 1)]
    assert one["gathered"] == []
    assert zero["seed"] == one["seed"]
    assert zero["mean"] == {"a": 5.0, "b": 0.5}
    assert zero["sum"] == {"a": 10.0, "b": 1.0}
