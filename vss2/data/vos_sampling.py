"""Which objects of a clip are trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vss2.errors import InputError


class ObjectSampler:
    """Up to `max_objects` objects of a clip's first frame, uniform without repetition (STCN).

    BL30K's tiny and vanishing objects are left out by the areas: an object needs more than
    `min_area` pixels in the first frame, and then more than `large_area`, or less than
    `vanished_area` in each other frame.

    Args:
        max_objects: objects of a sample.
        min_area: pixels; 0 takes every object that is there.
        large_area, vanished_area: pixels; 0 and 0 switch the second rule off.

    Raises:
        InputError: `max_objects` below 1, or a negative area.
    """

    def __init__(
        self,
        max_objects: int = 2,
        min_area: int = 0,
        large_area: int = 0,
        vanished_area: int = 0,
    ) -> None:
        self.max_objects = int(max_objects)
        self.min_area = int(min_area)
        self.large_area = int(large_area)
        self.vanished_area = int(vanished_area)
        if self.max_objects < 1 or min(min_area, large_area, vanished_area) < 0:
            raise InputError(
                "ObjectSampler needs max_objects of at least 1 and areas of at least 0, got "
                f"{max_objects}, {min_area}, {large_area} and {vanished_area}."
            )

    def __call__(self, masks: Sequence[np.ndarray], rng: np.random.Generator) -> list[int]:
        """Ids of the chosen objects, the target first; empty where there is none.

        Args:
            masks: uint8 (H, W) ids of each frame of the clip.
        """
        areas = [np.bincount(mask.ravel(), minlength=256) for mask in masks]
        first, others = areas[0], areas[1:]
        ids = [
            i
            for i in range(1, 256)
            if first[i] > self.min_area
            and (first[i] > self.large_area or all(a[i] < self.vanished_area for a in others))
        ]
        if not ids:
            return []
        return rng.choice(ids, min(self.max_objects, len(ids)), replace=False).tolist()


def renumbered(masks: Sequence[np.ndarray], ids: Sequence[int]) -> np.ndarray:
    """Masks with the chosen ids as 1, 2, ... and all else 0, uint8 (T, H, W)."""
    table = np.zeros(256, np.uint8)
    table[list(ids)] = np.arange(1, len(ids) + 1)
    return table[np.stack(list(masks))]
