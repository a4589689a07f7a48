"""Thin helpers over `torch.distributed` that also work without a process group.

Without an initialised group the world has one member: every function returns at once what a
world of size 1 would give.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

__all__ = [
    "all_gather",
    "create_local_process_group",
    "gather",
    "get_local_process_group",
    "get_local_rank",
    "get_local_size",
    "get_rank",
    "get_world_size",
    "is_main_process",
    "reduce_dict",
    "shared_random_seed",
    "synchronize",
]

_NO_LOCAL_GROUP = (
    "The group of this machine's processes does not exist: start workers with launch(), or call "
    "comm.create_local_process_group() once on every process."
)

# The group of the processes on this machine, and the gloo group for objects: each with the world
# that it belongs to. Weakly: a group that is held has running threads, and one of them that is in
# Python when the interpreter ends aborts the process.
_local_group: _Held | None = None
_object_group: _Held | None = None


class _Held(NamedTuple):
    world: weakref.ref
    group: weakref.ref


def _hold(group: Any) -> _Held:
    return _Held(weakref.ref(dist.group.WORLD), weakref.ref(group))


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """Index of this process among all; 0 without a process group."""
    return dist.get_rank() if _is_distributed() else 0


def is_main_process() -> bool:
    """Whether this is the process with rank 0."""
    return get_rank() == 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Make the group of the processes on this machine. Every process calls it, exactly once.

    Ranks of one machine are taken to be consecutive: machine `m` holds ranks
    `m * num_workers_per_machine` and up.
    """
    global _local_group
    assert _current(_local_group) is None, "The local process group exists already."
    world = get_world_size()
    assert world % num_workers_per_machine == 0, (
        f"{world} processes cannot be split over machines with {num_workers_per_machine} each."
    )
    mine = get_rank() // num_workers_per_machine
    for machine in range(world // num_workers_per_machine):
        first = machine * num_workers_per_machine
        group = dist.new_group(list(range(first, first + num_workers_per_machine)))
        if machine == mine:
            _local_group = _hold(group)


def _current(held: _Held | None) -> Any:
    """The group, if the world that it was made in is still the current one."""
    if held is None or held.world() is None:
        return None
    return held.group() if held.world() is dist.group.WORLD else None


def get_local_process_group() -> Any:
    """The group of the processes on this machine, see `create_local_process_group`."""
    group = _current(_local_group)
    assert group is not None, _NO_LOCAL_GROUP
    return group


def get_local_rank() -> int:
    """Index of this process among those of its machine; 0 without a process group."""
    return dist.get_rank(group=get_local_process_group()) if _is_distributed() else 0


def get_local_size() -> int:
    """Number of processes on this machine; 1 without a process group."""
    return dist.get_world_size(group=get_local_process_group()) if _is_distributed() else 1


def synchronize() -> None:
    """Wait until every process has come here."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        # NCCL guesses the device from the rank otherwise, and hangs where the guess is wrong.
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


def _group_for_objects() -> Any:
    """A group with a CPU backend: objects need not travel over the devices."""
    global _object_group
    if dist.get_backend() != "nccl":
        return dist.group.WORLD
    group = _current(_object_group)
    if group is None:
        group = dist.new_group(backend="gloo")
        _object_group = _hold(group)
    return group


def all_gather(data: Any, group: Any = None) -> list[Any]:
    """Every rank's `data` (any picklable object), in rank order, on every rank."""
    if get_world_size() == 1:
        return [data]
    if group is None:
        group = _group_for_objects()
    size = dist.get_world_size(group)
    if size == 1:
        return [data]
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: Any = None) -> list[Any]:
    """Every rank's `data` (any picklable object), in rank order, on rank `dst`; `[]` elsewhere."""
    if get_world_size() == 1:
        return [data]
    if group is None:
        group = _group_for_objects()
    size = dist.get_world_size(group=group)
    if size == 1:
        return [data]
    if dist.get_rank(group=group) == dst:
        gathered: list[Any] = [None] * size
        dist.gather_object(data, gathered, dst=dst, group=group)
        return gathered
    dist.gather_object(data, None, dst=dst, group=group)
    return []


def shared_random_seed() -> int:
    """A random number that is the same on every rank. All ranks must call it.

    It is drawn from rank 0's numpy generator, hence reproducible after `seed_all_rng`.
    """
    return all_gather(np.random.randint(2**31))[0]


def reduce_dict(
    input_dict: Mapping[str, torch.Tensor], average: bool = True
) -> Mapping[str, torch.Tensor]:
    """Mean (or sum) over ranks of scalar tensors; the result is right on rank 0 only.

    All ranks must have the same keys.
    """
    world = get_world_size()
    if world < 2:
        return input_dict
    with torch.no_grad():
        # Sorted, so that every rank stacks in the same order.
        names = sorted(input_dict)
        values = torch.stack([input_dict[name] for name in names], dim=0)
        dist.reduce(values, dst=0)
        if average and dist.get_rank() == 0:
            values /= world
        return dict(zip(names, values, strict=True))
