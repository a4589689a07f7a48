"""Processes of a run: started by torchrun, by SLURM, or spawned here."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # later, its default arguments would keep the process group

from vss2.d2.engine import launch as spawn
from vss2.d2.utils import comm
from vss2.errors import InputError

logger = logging.getLogger(__name__)

LAUNCHERS = ("auto", "slurm")
TIMEOUT = timedelta(minutes=30)
_STORE_PORT = "vss2/store_port"
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class World(NamedTuple):
    """This process among those that somebody else has started.

    Attributes:
        source: who: "torchrun" or "slurm".
        rank, size: among all processes.
        local_rank, local_size: among those of this machine.
        address, port: where rank 0 listens.
    """

    source: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int


def find_world(
    launcher: str = "auto", environment: Mapping[str, str] | None = None
) -> World | None:
    """The processes that torchrun (or, asked for, SLURM) has started; None if there are none.

    Args:
        launcher: "auto" takes torchrun's variables where they are set; "slurm" takes SLURM's.
        environment: default: that of this process.

    Raises:
        InputError: the variables are there in part only, or make no sense.
    """
    env = os.environ if environment is None else environment
    if launcher == "slurm":
        return _slurm_world(env)
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(env):
        if int(env.get("WORLD_SIZE") or 1) > 1:
            # Each process would train alone, and all would write into one folder.
            missing = [name for name in _TORCHRUN if name not in env]
            raise InputError(
                f"WORLD_SIZE={env['WORLD_SIZE']} is set, but {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not: start the processes with torchrun, "
                "or unset it"
            )
        return None
    missing = [name for name in _TORCHRUN if name not in env]
    if missing:
        raise InputError(f"started as by torchrun, but {', '.join(missing)} not set")
    return _checked(
        World(
            "torchrun",
            _number(env, "RANK"),
            _number(env, "WORLD_SIZE"),
            _number(env, "LOCAL_RANK"),
            _number(env, "LOCAL_WORLD_SIZE"),
            env["MASTER_ADDR"],
            _number(env, "MASTER_PORT"),
        )
    )


def restarted(environment: Mapping[str, str] | None = None) -> bool:
    """Whether torchrun has started these processes again after a failure."""
    env = os.environ if environment is None else environment
    return int(env.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0


def launch(
    main_func: Callable[..., Any],
    args: tuple[Any, ...] = (),
    *,
    world: World | None = None,
    num_gpus: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    timeout: timedelta = TIMEOUT,
) -> None:
    """Run `main_func(*args)` in every process of a run; the process group ends with it.

    Processes talk over NCCL where CUDA is available, else over gloo.

    Args:
        main_func: importable by name, if processes are spawned.
        world: this process among others (`find_world`): it joins them and starts none itself.
        num_gpus: processes to spawn on this machine, where there is no `world`.
        num_machines, machine_rank, dist_url: of a run over several machines, without `world`.
        timeout: after which a process gives up waiting for the others.

    Raises:
        InputError: more processes than GPUs.
    """
    if world is not None:
        with joined(world, timeout):
            main_func(*args)
        return
    if num_gpus * num_machines == 1:
        main_func(*args)
        return
    if torch.cuda.is_available() and num_gpus > torch.cuda.device_count():
        raise InputError(f"--num-gpus {num_gpus}, but this machine has {torch.cuda.device_count()}")
    spawn(
        _spawned,
        num_gpus,
        num_machines=num_machines,
        machine_rank=machine_rank,
        dist_url=dist_url,
        args=(main_func, args),
        timeout=timeout,
    )


@contextlib.contextmanager
def joined(world: World, timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """Inside, this process is one of `world`, with its own GPU where there are any."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(_own_gpu(world))
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        **_meeting_point(world, timeout),
        rank=world.rank,
        world_size=world.size,
        timeout=timeout,
    )
    with _group_ends():
        comm.create_local_process_group(world.local_size)
        comm.synchronize()
        yield


def _meeting_point(world: World, timeout: timedelta) -> dict[str, Any]:
    """Where `init_process_group` finds the others."""
    if world.source == "slurm":
        return {"init_method": f"tcp://{world.address}:{world.port}"}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return {"store": _own_store(world, timeout)}
    return {"init_method": "env://"}


def _own_store(world: World, timeout: timedelta) -> dist.TCPStore:
    """A store for this start of the processes.

    torchrun's own may outlive its processes (seen in torch 2.15): processes that it starts again
    would find there the addresses of the dead ones.
    """
    shared = dist.TCPStore(world.address, world.port, is_master=False, timeout=timeout)
    if world.rank == 0:
        store = dist.TCPStore(world.address, 0, is_master=True, wait_for_workers=False)
        shared.set(_STORE_PORT, str(store.port))
        store.set_timeout(timeout)
        return store
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        port = int(shared.get(_STORE_PORT))
        try:  # a store would complain at length: the port may still be that of the start before
            socket.create_connection((world.address, port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
            continue
        return dist.TCPStore(world.address, port, is_master=False, timeout=timeout)


def _spawned(main_func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    with _group_ends():
        main_func(*args)


@contextlib.contextmanager
def _group_ends() -> Iterator[None]:
    """Destroys the process group and ends its threads; not after a failure: they would wait.

    A thread that is left when the interpreter ends, and wants to free a tensor just then, aborts
    the process (Python ends it inside of code that must not be unwound).
    """
    yield
    if not dist.is_initialized():
        return
    # Before 2.8, torch holds the GIL while it waits for threads that may want it. Without an end
    # the group stays as it is after a failure.
    if dist.get_backend() == "nccl" or torch.__version__ >= "2.8":
        dist.destroy_process_group()
        gc.collect()  # models hold their group, and may be in reference cycles


def _own_gpu(world: World) -> int:
    count = torch.cuda.device_count()
    if world.local_rank < count:
        return world.local_rank
    if world.source == "slurm" and count == 1:
        return 0  # each task sees its own GPU only
    raise InputError(
        f"{world.local_size} processes on this machine need as many GPUs, it has {count}"
    )


def _slurm_world(env: Mapping[str, str]) -> World:
    needed = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    missing = [name for name in needed if name not in env]
    if missing:
        raise InputError(
            f"--launcher slurm, but {', '.join(missing)} not set: start the tool with srun"
        )
    size = _number(env, "SLURM_NTASKS")
    per_node = _tasks_per_node(env, size)
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    job = int(re.sub(r"\D", "", env.get("SLURM_JOB_ID", "")) or 0)
    return _checked(
        World(
            "slurm",
            _number(env, "SLURM_PROCID"),
            size,
            _number(env, "SLURM_LOCALID"),
            per_node,
            env.get("MASTER_ADDR") or first_node(nodes),
            int(env.get("MASTER_PORT") or 20000 + job % 20000),
        )
    )


def _tasks_per_node(env: Mapping[str, str], size: int) -> int:
    """The number of tasks on each node, from lists such as "4(x2)" or "4"."""
    text = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or str(size)
    counts = re.findall(r"(\d+)(?:\(x\d+\))?", text)
    if len(set(counts)) != 1:
        raise InputError(f"SLURM has put {text} tasks on its nodes; every node must have as many")
    return int(counts[0])


def first_node(nodes: str) -> str:
    """The first host of SLURM's list, such as "gpu07" of "gpu[07-09,12],big1"."""
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if found is None:
        raise InputError(f"SLURM's list of nodes {nodes!r} names none; set MASTER_ADDR")
    return "".join(part or "" for part in found.groups())


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError as e:
        raise InputError(f"{name} must be a whole number, got {env[name]!r}") from e


def _checked(world: World) -> World:
    if not (0 <= world.rank < world.size and 0 <= world.local_rank < world.local_size):
        raise InputError(
            f"{world.source} says rank {world.rank} of {world.size} and local rank "
            f"{world.local_rank} of {world.local_size}, which cannot be"
        )
    if world.size % world.local_size:
        raise InputError(
            f"{world.size} processes cannot be {world.local_size} on every machine alike"
        )
    return world
