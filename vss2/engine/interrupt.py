"""Ctrl-C: the run ends at the boundary of an iteration, with a checkpoint."""

from __future__ import annotations

import os
import time
from types import FrameType

import torch

from vss2.checkpoint import VideoCheckpointer
from vss2.checkpoint_folder import periodic_name
from vss2.checkpoint_io import failing_together
from vss2.d2.engine import HookBase
from vss2.d2.utils import comm
from vss2.interrupt import StopRequest

# A launcher passes on the signal that the terminal has sent to its processes already; within so
# many seconds it counts once.
SAME_KEY = 1.0


class TrainingInterrupted(KeyboardInterrupt):
    """The run was stopped by Ctrl-C; its checkpoint is written."""


class EvaluationInterrupted(KeyboardInterrupt):
    """Ctrl-C came during an evaluation, between two iterations."""


class InterruptGuard(StopRequest):
    """A request to stop a training after the iteration that is under way.

    During an evaluation of a single process (see `evaluating`) the first Ctrl-C raises
    EvaluationInterrupted, since an iteration is not under way.
    """

    def __init__(self) -> None:
        super().__init__("stopping after this iteration; press Ctrl-C again to stop without saving")
        self.evaluating = False
        self._process = os.getpid()
        self._since = 0.0

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader's worker, which the terminal also signals; its parent ends it
        now = time.monotonic()
        if self.requested and now - self._since < SAME_KEY:
            return
        self._since = now
        super()._handle(signum, frame)

    def _first(self) -> None:
        if self.evaluating and comm.get_world_size() == 1:
            raise EvaluationInterrupted
        if comm.is_main_process():
            super()._first()

    def agreed(self, device: torch.device) -> bool:
        """Whether any rank was asked to stop; every rank must call it."""
        if comm.get_world_size() == 1:
            return self.requested
        flag = torch.tensor([float(self.requested)], device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())


class StopAtBoundary(HookBase):
    """Last hook of an iteration: writes a checkpoint and ends the run when that was asked for.

    Args:
        guard: says whether.
        checkpointer: of the run.
        device: of the model.
    """

    def __init__(
        self, guard: InterruptGuard, checkpointer: VideoCheckpointer, device: torch.device
    ):
        self.guard = guard
        self.checkpointer = checkpointer
        self.device = device

    def after_step(self) -> None:
        if self.guard.agreed(self.device):
            save_boundary(self.checkpointer, self.trainer.iter)
            raise TrainingInterrupted


def save_boundary(checkpointer: VideoCheckpointer, iteration: int) -> None:
    """A checkpoint after `iteration`, unless this run has just written or read it. For every rank.

    Raises:
        vss2.errors.InputFileError: on every rank, where rank 0 cannot write it.
    """
    if checkpointer.saved_iteration != iteration:
        with failing_together():
            checkpointer.save(periodic_name(iteration), iteration=iteration)
    comm.synchronize()
