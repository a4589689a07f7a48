"""Which frames of a video make a training clip.

A sampler is called with (number of frames, generator); one whose `uses_labels` is true is called
with (number of frames, generator, positions of the labelled frames). `SkipClipSampler` also takes
the clip's position in the stream, because its gaps grow as training goes on.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import numpy as np

from vss2.errors import InputError


class OffsetClipSampler:
    """Target frame and references at fixed offsets before it (CFFM, MRCFA: data pipelines).

    With probability `reverse_prob` the video is first played backwards, so that the references
    then lie after the target. The target is uniform over the frames that have all references.

    Args:
        offsets: frame offsets of the clip relative to its target, ascending, last one 0.
        reverse_prob: probability of playing the video backwards.

    Raises:
        InputError: offsets that do not end with 0 or do not ascend, or a bad probability.
    """

    def __init__(self, offsets: Sequence[int] = (-9, -6, -3, 0), reverse_prob: float = 0.5) -> None:
        self.offsets = tuple(int(offset) for offset in offsets)
        self.reverse_prob = float(reverse_prob)
        ascending = all(a < b for a, b in zip(self.offsets, self.offsets[1:], strict=False))
        if not self.offsets or self.offsets[-1] != 0 or not ascending:
            raise InputError(
                f"Clip offsets must ascend and end with 0 (the target), got {list(self.offsets)}."
            )
        if not 0.0 <= self.reverse_prob <= 1.0:
            raise InputError(f"reverse_prob must be in 0..1, got {self.reverse_prob}.")

    @property
    def min_frames(self) -> int:
        """Length of the shortest video that holds a clip."""
        return 1 - self.offsets[0]

    def __call__(self, num_frames: int, rng: np.random.Generator) -> list[int]:
        """Positions of a clip's frames in a video of `num_frames`, target last.

        Raises:
            InputError: the video is shorter than `min_frames`.
        """
        if num_frames < self.min_frames:
            raise InputError(
                f"A clip with offsets {list(self.offsets)} needs {self.min_frames} frames, "
                f"the video has {num_frames}."
            )
        reverse = rng.random() < self.reverse_prob
        target = int(rng.integers(-self.offsets[0], num_frames))
        positions = [target + offset for offset in self.offsets]
        return [num_frames - 1 - p for p in positions] if reverse else positions


class LabelledClipSampler(OffsetClipSampler):
    """Offsets relative to a labelled target, for sets where few frames of a video are labelled.

    As `OffsetClipSampler`, but the target is uniform over the labelled frames that have all
    references. Where no labelled frame has them in the drawn direction, the other one is taken.

    Args:
        offsets: frame offsets of the clip relative to its target, ascending, last one 0.
        reverse_prob: probability that the references lie after the target instead of before it.

    Raises:
        InputError: offsets that do not end with 0 or do not ascend, or a bad probability.
    """

    uses_labels = True

    def __call__(
        self, num_frames: int, rng: np.random.Generator, labelled: Sequence[int] | None = None
    ) -> list[int]:
        """Positions of a clip's frames in a video of `num_frames`, target last.

        Args:
            labelled: positions of the labelled frames; None = all.

        Raises:
            InputError: no labelled frame has its references in the video.
        """
        candidates = range(num_frames) if labelled is None else labelled
        reach = -self.offsets[0]
        forward = [p for p in candidates if p >= reach]
        backward = [p for p in candidates if p + reach < num_frames]
        if not forward and not backward:
            raise InputError(
                f"No labelled frame has references at offsets {list(self.offsets)}: the video has "
                f"{num_frames} frames, labelled are {list(candidates)}."
            )
        reverse = rng.random() < self.reverse_prob
        if not (backward if reverse else forward):
            reverse = not reverse
        targets = backward if reverse else forward
        target = targets[int(rng.integers(len(targets)))]
        return [target - offset if reverse else target + offset for offset in self.offsets]


class SkipCurriculum:
    """The largest gap between a clip's frames, which changes as training goes on (STCN).

    It depends on the position in the stream of clips alone, so resuming a run or another number
    of workers changes nothing. A change waits for an epoch's start, as published: with
    E = ceil(max_iter / epoch_iters) epochs, value i + 1 serves from epoch round(E * fractions[i]).

    Args:
        max_skips: the gaps in frames, in turn.
        fractions: shares of the run at which the next gap's turn comes, ascending; one fewer.
        max_iter: iterations of the run.
        clips_per_iter: clips of one iteration over all processes.
        epoch_iters: iterations of one epoch; 1 rounds to iterations.

    Raises:
        InputError: numbers that do not fit together, or that are not positive.
    """

    def __init__(
        self,
        max_skips: Sequence[int],
        fractions: Sequence[float],
        max_iter: int,
        clips_per_iter: int,
        epoch_iters: int = 1,
    ) -> None:
        self.max_skips = tuple(int(skip) for skip in max_skips)
        if len(self.max_skips) != len(fractions) + 1 or min(self.max_skips) < 1:
            raise InputError(
                f"SkipCurriculum needs positive max_skips, one more than fractions, got "
                f"{list(max_skips)} and {list(fractions)}."
            )
        if list(fractions) != sorted(fractions) or not all(0 <= f <= 1 for f in fractions):
            raise InputError(f"SkipCurriculum.fractions must ascend in 0..1: {list(fractions)}.")
        if min(max_iter, clips_per_iter, epoch_iters) < 1:
            raise InputError(
                "SkipCurriculum needs max_iter, clips_per_iter and epoch_iters of at least 1, got "
                f"{max_iter}, {clips_per_iter} and {epoch_iters}."
            )
        epochs = math.ceil(max_iter / epoch_iters)
        self.changes = tuple(round(epochs * f) * epoch_iters for f in fractions)
        self.clips_per_iter = int(clips_per_iter)

    def __call__(self, position: int) -> int:
        """The gap for the clip at `position` of the stream."""
        return self.max_skips[bisect.bisect_right(self.changes, position // self.clips_per_iter)]


class SkipClipSampler:
    """Three frames with random gaps between them, played backwards half of the time (STCN).

    The published rule, its corners included: gaps reach one more than the curriculum says, and
    near the end of a video, or in one that is not longer than the gap, frames repeat.

    Args:
        curriculum: gap in frames of video by position in the stream.
        reverse_prob: probability of playing the clip backwards.

    Raises:
        InputError: a bad probability.
    """

    min_frames = 3

    def __init__(self, curriculum: SkipCurriculum, reverse_prob: float = 0.5) -> None:
        self.curriculum = curriculum
        self.reverse_prob = float(reverse_prob)
        if not 0.0 <= self.reverse_prob <= 1.0:
            raise InputError(f"reverse_prob must be in 0..1, got {self.reverse_prob}.")

    def __call__(
        self, num_frames: int, rng: np.random.Generator, position: int, frame_step: int = 1
    ) -> list[int]:
        """Positions of a clip's three frames in a video.

        Args:
            num_frames: of the video, at least `min_frames`.
            position: of the clip in the stream.
            frame_step: frames of video between two of these frames, such as 5 where every fifth
                one is annotated.

        Raises:
            InputError: the video is too short.
        """
        if num_frames < self.min_frames:
            raise InputError(f"A clip needs {self.min_frames} frames, the video has {num_frames}.")
        reach = min(num_frames, max(self.curriculum(position) // frame_step, 1))
        start = int(rng.integers(num_frames - reach + 1))
        second = start + int(rng.integers(reach + 1)) + 1
        second = min(second, num_frames - reach, num_frames - 1)
        third = second + int(rng.integers(reach + 1)) + 1
        third = min(third, num_frames - reach // 2, num_frames - 1)
        positions = [start, second, third]
        return positions[::-1] if rng.random() < self.reverse_prob else positions
