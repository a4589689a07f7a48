"""Start one process per device on this machine and connect them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ..utils import comm

DEFAULT_TIMEOUT = timedelta(minutes=30)
_HERE = "127.0.0.1"


def launch(
    main_func: Callable,
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Run `main_func(*args)` in every process of a distributed run, or directly if it is one.

    Processes are spawned; the process group is NCCL where CUDA is available, else gloo. The global
    rank is `machine_rank * num_gpus_per_machine + local rank`.

    Args:
        main_func: importable by name (module level), if more than one process is started.
        num_gpus_per_machine: processes on each machine.
        num_machines, machine_rank: how many machines, and which one this is.
        dist_url: where the processes meet; "auto" or None takes a local port that this process
            holds for them, on one machine only (`AssertionError` otherwise).
        args: positional arguments of `main_func`.
        timeout: of the process group.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size == 1:
        main_func(*args)
        return
    held = False
    if dist_url is None or dist_url == "auto":
        assert num_machines == 1, f"dist_url=auto serves one machine only, not {num_machines}"
        # Held until the end: a free port that rank 0 opens later could be taken by then.
        meeting = dist.TCPStore(_HERE, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        dist_url, held = f"tcp://{_HERE}:{meeting.port}", True
    elif num_machines > 1 and dist_url.startswith("file://"):
        logging.getLogger(__name__).warning(
            "dist_url %s: files are no reliable meeting point of machines, prefer tcp://", dist_url
        )
    mp.start_processes(
        _worker,
        nprocs=num_gpus_per_machine,
        args=(
            main_func,
            world_size,
            num_gpus_per_machine,
            machine_rank,
            dist_url,
            held,
            args,
            timeout,
        ),
        daemon=False,
        start_method="spawn",
    )


def _worker(
    local_rank: int,
    main_func: Callable,
    world_size: int,
    num_processes: int,
    machine_rank: int,
    dist_url: str,
    held: bool,
    args: tuple,
    timeout: timedelta,
) -> None:
    """Body of one process: join the group, take the device, run the function."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        assert num_processes <= torch.cuda.device_count(), (
            f"{num_processes} processes need as many GPUs, found {torch.cuda.device_count()}"
        )
    try:
        dist.init_process_group(
            backend="nccl" if has_gpu else "gloo",
            **_meeting_point(dist_url, held, timeout),
            world_size=world_size,
            rank=machine_rank * num_processes + local_rank,
            timeout=timeout,
        )
    except Exception:
        logging.getLogger(__name__).error("The processes could not meet at %s", dist_url)
        raise
    comm.create_local_process_group(num_processes)
    if has_gpu:
        torch.cuda.set_device(local_rank)
    # Device set-up must be done on all ranks before the first collective of main_func.
    comm.synchronize()
    main_func(*args)


def _meeting_point(dist_url: str, held: bool, timeout: timedelta) -> dict[str, Any]:
    """Where `init_process_group` finds the others; `held`: the process that started us listens."""
    if not held:
        return {"init_method": dist_url}
    port = int(dist_url.rpartition(":")[2])
    return {"store": dist.TCPStore(_HERE, port, is_master=False, timeout=timeout)}
