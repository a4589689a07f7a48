"""Which answers an evaluator is still owed, and whether all ranks together saw every video once."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from vss2.d2.utils import comm
from vss2.errors import InputError


class AnswerLedger:
    """Pairs answers with evaluation items by `video_id` and `frame_index`.

    A model may answer late and several frames at once, but each video's frames in order and all
    that are `required` (which a frame is unless its item says False).
    """

    def __init__(self) -> None:
        self._owed: dict[str, deque[int]] = {}
        self._ended: set[str] = set()

    def expect(self, item: Mapping[str, Any]) -> None:
        """Note down an evaluation item; nothing is owed for frames that are not required."""
        video = str(item["video_id"])
        owed = self._owed.setdefault(video, deque())
        if item.get("required", True):
            owed.append(int(item["frame_index"]))
        if item.get("last_frame"):
            self._ended.add(video)

    def take(self, answer: Mapping[str, Any]) -> None:
        """Cross out what an answer pays.

        Raises:
            InputError: another frame's answer was due, or none.
        """
        video, index = str(answer["video_id"]), int(answer["frame_index"])
        owed = self._owed.get(video)
        if not owed or owed[0] != index:
            due = f"that to frame {owed[0]}" if owed else "none"
            raise InputError(
                f"Video '{video}': the answer to frame {index} came where {due} was due."
            )
        owed.popleft()

    def settled(self) -> list[str]:
        """Videos that have come to their end since the last call, with all answers."""
        done = sorted(video for video in self._ended if not self._owed[video])
        for video in done:
            self._ended.remove(video)
            del self._owed[video]
        return done

    def problem(self) -> str | None:
        """What is missing, as a sentence; None where nothing is."""
        for video in sorted(self._owed):
            owed = self._owed[video]
            if owed:
                return (
                    f"Video '{video}': the answer to frame {owed[0]} is missing "
                    f"({len(owed)} in all)."
                )
            return f"Video '{video}' did not come to its end."
        return None


def check_ranks(problem: str | None, videos: Sequence[str]) -> list[str]:
    """All ranks' videos, sorted; every rank must call it.

    Args:
        problem: what went wrong on this rank, if anything.
        videos: that this rank saw whole.

    Raises:
        InputError: on every rank alike (one alone would leave the others waiting): a rank has a
            problem, or a video was on two ranks.
    """
    reports = comm.all_gather((problem, list(videos)))
    for other, _ in reports:
        if other is not None:
            raise InputError(other)
    times = Counter(video for _, seen in reports for video in seen)
    for video, number in sorted(times.items()):
        if number > 1:
            raise InputError(
                f"Video '{video}' was evaluated by {number} processes; every video must be on "
                f"exactly one."
            )
    return sorted(times)
