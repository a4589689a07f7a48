"""Which frames of a video make a training clip.

A sampler is called with (number of frames, generator); one whose `uses_labels` is true is called
with (number of frames, generator, positions of the labelled frames).
"""

from __future__ import annotations

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
