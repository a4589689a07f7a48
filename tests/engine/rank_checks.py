"""What `test_ranks` runs in each of two processes; the findings go to one file per rank."""

from __future__ import annotations

import atexit
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from vss2.d2.utils import comm
from vss2.engine.nonfinite import NonFiniteGuard, NonFiniteLossError
from vss2.engine.parallel import broadcast_buffers, buffers_of_rank_0, convert_norms
from vss2.engine.trainer import VideoTrainer


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, batch: list[dict[str, Any]]) -> torch.Tensor:
        return torch.stack([(self.weight * sample["x"]).sum() for sample in batch]).mean()


def stream(rank: int, bad: int | None):
    position = 0
    while True:
        x = torch.tensor([1.0, 2.0]) * (position + rank)
        if position == bad:
            x = x / 0
        yield [{"x": x, "video_id": f"r{rank}b{position}", "frame_indices": [position]}]
        position += 1


def trainer(rank: int, bad: int | None = None, **options: Any) -> VideoTrainer:
    model = DistributedDataParallel(Line())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return VideoTrainer(model, stream(rank, bad), optimizer, **options)


def write_threads(file: Path) -> None:
    """The names of this process's threads."""
    names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    file.write_text("\n".join(sorted(names)))


def main(folder: str) -> None:
    torch.set_num_threads(1)
    rank = comm.get_rank()
    write_threads(Path(folder) / f"threads{rank}.txt")
    atexit.register(write_threads, Path(folder) / f"threads_at_exit{rank}.txt")
    found: dict[str, Any] = {"world": (rank, comm.get_world_size(), comm.get_local_rank())}

    stopped = trainer(rank, bad=1 if rank == 1 else None)
    try:
        stopped.train(0, 4)
    except NonFiniteLossError as e:
        found["raised"] = (stopped.iter, str(e))
    guard = NonFiniteGuard("skip", limit=2)
    skipping = trainer(rank, bad=1 if rank == 1 else None, guard=guard)
    skipping.train(0, 4)
    found["skipped"] = (guard.total, skipping.model.module.weight.detach())

    exchanges: list[int] = []

    def exchange(state, bucket):  # type: ignore[no-untyped-def]
        exchanges.append(1)
        return allreduce_hook(None, bucket)

    accumulating = trainer(rank, grad_accum=3)
    accumulating.model.register_comm_hook(None, exchange)
    accumulating.train(0, 2)
    found["exchanges"] = len(exchanges)
    found["accumulated"] = accumulating.model.module.weight.detach()
    if rank == 0:
        found["mean"] = [v for v, _ in accumulating.storage.history("total_loss").values()]

    norms = nn.Sequential(nn.SyncBatchNorm(2), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    parameters = list(norms.parameters())
    norms = convert_norms(norms, torch.device("cpu"), sync_bn=True)
    norms(torch.randn(4, 2, 3, 3) + rank)
    found["norms"] = [type(module).__mro__[1].__name__ for module in norms]
    found["same parameters"] = all(
        a is b for a, b in zip(parameters, norms.parameters(), strict=True)
    )
    before = norms[0].running_mean.clone()
    with buffers_of_rank_0(norms):
        inside = norms[0].running_mean.clone()
    found["restored"] = torch.equal(before, norms[0].running_mean)
    broadcast_buffers(norms)
    found["buffers"] = (before, inside, norms[0].running_mean.clone())
    torch.save(found, Path(folder) / f"rank{rank}.pth")
