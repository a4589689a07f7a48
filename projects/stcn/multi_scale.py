"""Multi-scale and flip testing as published for YouTube-VOS: a session made of sessions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from vss2.errors import InputError
from vss2.modeling.memory_session import MemorySession
from vss2.modeling.session import VideoSession

LEVELS = 255


class MultiScaleSession(VideoSession):
    """Every run sees every frame; their probabilities, cut to 8 bits, are added up.

    The published runs store floor(255 p) and take the largest sum, the first among equals.

    Args:
        runs: sessions of one model with different sizes and flips.
    """

    def __init__(self, runs: Sequence[MemorySession]):
        if not 1 <= len(runs) <= 257:
            raise InputError(f"multi-scale testing takes 1 to 257 runs, got {len(runs)}")
        self.runs = list(runs)

    @property
    def object_ids(self) -> list[int]:
        return self.runs[0].object_ids

    def step(
        self,
        frame: torch.Tensor,
        mask: torch.Tensor | None = None,
        objects: Sequence[int] | None = None,
        remove: Sequence[int] = (),
        output_size: tuple[int, int] | None = None,
        labels_only: bool = False,
        need_output: bool = True,
    ) -> dict[str, Any] | None:
        """See `PropagationSession.step`; `prob` is the mean of the cut probabilities."""
        answer: dict[str, Any] | None = None
        total: torch.Tensor | None = None
        for run in self.runs:
            answer = run.step(frame, mask, objects, remove, output_size, need_output=need_output)
            if answer is not None:
                levels = quantized(answer["prob"]).int()
                total = levels if total is None else total + levels
        if answer is None or total is None:
            return None
        ids = torch.tensor([0, *answer["object_ids"]], device=total.device)
        answer["mask"] = ids.to(answer["mask"].dtype)[total.argmax(0)]
        answer["prob"] = total.float() / (LEVELS * len(self.runs))
        if labels_only:
            del answer["prob"]
        return answer

    def run(
        self,
        frames: Iterable[torch.Tensor],
        batch: int = 1,
        output_size: tuple[int, int] | None = None,
        labels_only: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Answers for all `frames`, one at a time whatever the `batch`, then `finish`."""
        for frame in frames:
            answer = self.step(frame, output_size=output_size, labels_only=labels_only)
            assert answer is not None
            yield answer
        yield from self.finish()

    def finish(self) -> Iterator[dict[str, Any]]:
        for run in self.runs:
            yield from run.finish()

    def reset(self) -> None:
        for run in self.runs:
            run.reset()

    def state_dict(self) -> dict[str, Any]:
        return {"runs": [run.state_dict() for run in self.runs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["runs"]) != len(self.runs):
            raise InputError(
                f"the state is of {len(state['runs'])} runs, this session has {len(self.runs)}"
            )
        for run, part in zip(self.runs, state["runs"], strict=True):
            run.load_state_dict(part)


def quantized(prob: torch.Tensor) -> torch.Tensor:
    """floor(255 p) as uint8."""
    return (prob * LEVELS).to(torch.uint8)
