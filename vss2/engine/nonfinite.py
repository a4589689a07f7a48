"""Losses that are infinite or NaN: found on any rank, acted on by all ranks alike."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vss2.d2.utils import comm

logger = logging.getLogger(__name__)

MODES = ("raise", "skip")
_CLIPS_IN_MESSAGE = 8


class NonFiniteLossError(FloatingPointError):
    """The loss of an iteration is infinite or NaN; the message lists losses and clips by rank."""


class NonFiniteGuard:
    """Decides over a step whose loss or gradient is not finite, the same way on every rank.

    The ranks agree on one number per step. Only when it says that something is wrong do they
    exchange what it was.

    Args:
        mode: "raise", or "skip": the step then changes neither weights nor buffers.
        limit: so many skipped steps in a row raise after all.

    Attributes:
        in_row: skipped steps since the last good one.
        total: skipped steps of the run.
    """

    def __init__(self, mode: str = "raise", limit: int = 10):
        self.mode = mode
        self.limit = limit
        self.in_row = 0
        self.total = 0
        self._buffers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def remember(self, model: nn.Module) -> None:
        """Keep the buffers of `model` (running statistics) as they are before the step."""
        if self.mode != "skip":
            return
        if not self._buffers:
            self._buffers = [(b, b.detach().clone()) for b in model.buffers()]
        else:
            for buffer, kept in self._buffers:
                kept.copy_(buffer)

    def good(
        self,
        loss: torch.Tensor,
        norm: torch.Tensor | None,
        iteration: int,
        losses: Sequence[Mapping[str, torch.Tensor]],
        clips: Sequence[str],
    ) -> bool:
        """Whether the step may be taken; every rank must call it.

        Args:
            loss: this rank's loss.
            norm: of the gradient, where it is known and has to be finite.
            iteration: for the message.
            losses: of each micro-batch of this rank, by name.
            clips: what this rank's batches were made of.

        Raises:
            NonFiniteLossError: on every rank, in mode "raise" or when the limit is reached.
        """
        finite = torch.isfinite(loss)
        if norm is not None:
            finite = finite & torch.isfinite(norm)
        if self._agreed(finite):
            self.in_row = 0
            return True
        text = f"the loss is not finite at iteration {iteration}: " + _report(
            loss, norm, losses, clips
        )
        if self.mode == "raise":
            raise NonFiniteLossError(f"{text}. train.nonfinite=skip leaves such steps out")
        self.in_row += 1
        self.total += 1
        with torch.no_grad():
            for buffer, kept in self._buffers:
                buffer.copy_(kept)
        if self.in_row >= self.limit:
            raise NonFiniteLossError(
                f"{self.in_row} iterations in a row had to be skipped, which is "
                f"train.nonfinite_limit: {text}"
            )
        logger.warning("%s. Skipped; %d in a row, %d in all", text, self.in_row, self.total)
        return False

    @staticmethod
    def _agreed(finite: torch.Tensor) -> bool:
        if comm.get_world_size() > 1:
            bad = (~finite).float()
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
            return bad.item() == 0
        return bool(finite)

    def state_dict(self) -> dict[str, int]:
        return {"in_row": self.in_row, "total": self.total}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.in_row, self.total = int(state["in_row"]), int(state["total"])


def clip_names(batch: Any) -> list[str]:
    """The clips of a batch of samples, such as "v3 frames 0, 3, 6, 9", as far as samples say."""
    names = []
    for sample in batch if isinstance(batch, (list, tuple)) else ():
        if isinstance(sample, Mapping) and "video_id" in sample:
            frames = ", ".join(str(int(i)) for i in sample.get("frame_indices", ()))
            names.append(f"{sample['video_id']}{' frames ' + frames if frames else ''}")
    return names


def _report(
    loss: torch.Tensor,
    norm: torch.Tensor | None,
    losses: Sequence[Mapping[str, torch.Tensor]],
    clips: Sequence[str],
) -> str:
    """Losses and clips of the ranks whose loss is not finite, or of all if it is the gradient."""
    values = " | ".join(
        ", ".join(f"{name}={float(value):.6g}" for name, value in one.items()) for one in losses
    )
    gradient = "" if norm is None else f", norm of the gradient {float(norm):.6g}"
    more = len(clips) - _CLIPS_IN_MESSAGE
    shown = "; ".join(clips[:_CLIPS_IN_MESSAGE]) + (f"; and {more} more" if more > 0 else "")
    text = f"rank {comm.get_rank()}: {values}{gradient}{f' on clips [{shown}]' if clips else ''}"
    reports = comm.all_gather((bool(torch.isfinite(loss)), text))
    bad = [said for finite, said in reports if not finite]
    return "; ".join(bad or [f"(gradient) {said}" for _, said in reports])
