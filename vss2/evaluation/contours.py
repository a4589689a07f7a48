"""Region similarity J and contour accuracy F of two binary masks, as the DAVIS benchmark does.

"A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation" (CVPR 2016) and its
2017 form. A mask's contour and the dilation of it are made once, inside the mask's own box, and
serve all masks that it is compared with; counts are integers, so the numbers are those of
whole frames.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np

BOUND_TH = 0.008


def tolerance_radius(height: int, width: int, bound_th: float = BOUND_TH) -> int:
    """How far two contours may be apart, in pixels.

    Args:
        bound_th: a share of the image's diagonal, or, from 1 on, pixels.
    """
    if bound_th >= 1:
        return int(bound_th)
    return math.ceil(bound_th * math.hypot(height, width))


def boundary_map(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their right, lower or lower-right neighbour, uint8 (H, W) of 0, 1.

    Neighbours outside the image count as equal, so its border is no contour.

    Args:
        mask: uint8 (H, W) of 0 and 1.
    """
    # Largest less smallest value of each 2x2 window that lies in the image.
    return cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8), anchor=(0, 0))


@functools.lru_cache(maxsize=64)
def _rectangles(radius: int) -> tuple[np.ndarray, ...]:
    """Rectangles whose union is the disk of all offsets with dx^2 + dy^2 <= radius^2."""
    sides: dict[int, int] = {}
    for y in range(radius + 1):
        sides[math.isqrt(radius**2 - y**2)] = y
    return tuple(np.ones((2 * y + 1, 2 * x + 1), np.uint8) for x, y in sides.items())


def dilated(boundary: np.ndarray, radius: int) -> np.ndarray:
    """`boundary`, uint8 (H, W), dilated by a disk; outside the image there is nothing.

    A dilation by a rectangle costs little at any size, one by a disk a step for each of its pixels.
    """
    first, *others = _rectangles(radius)
    result = cv2.dilate(boundary, first)
    part = np.empty_like(result)
    for rectangle in others:
        cv2.max(result, cv2.dilate(boundary, rectangle, part), result)
    return result


class _Box(NamedTuple):
    """Rows top..bottom and columns left..right, ends not included."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)


class MaskContour:
    """A mask, its contour and what lies within reach of it, inside the mask's box.

    Args:
        mask: uint8 (H, W) of 0 and 1.
        radius: see `tolerance_radius`.
    """

    def __init__(self, mask: np.ndarray, radius: int):
        height, width = mask.shape
        x, y, w, h = cv2.boundingRect(mask)
        # One row and column more than the contour and its reach: what ends inside the image ends
        # in background.
        reach = radius + 1
        self._box = _Box(
            max(y - reach, 0),
            min(y + h + reach, height),
            max(x - reach, 0),
            min(x + w + reach, width),
        )
        self._radius = radius
        self._mask = mask[self._box.slices]
        self.area = cv2.countNonZero(self._mask)
        self._boundary = boundary_map(self._mask)
        self.length = cv2.countNonZero(self._boundary)

    @functools.cached_property
    def _reach(self) -> np.ndarray:
        return dilated(self._boundary, self._radius) if self.length else self._boundary

    def _shared(self, mine: np.ndarray, other: MaskContour, its: np.ndarray) -> int:
        """Pixels set in both of two maps, which lie in the boxes of `self` and `other`."""
        a, b = self._box, other._box
        both = _Box(
            max(a.top, b.top), min(a.bottom, b.bottom), max(a.left, b.left), min(a.right, b.right)
        )
        if both.top >= both.bottom or both.left >= both.right:
            return 0
        cut = [
            map_[
                both.top - box.top : both.bottom - box.top,
                both.left - box.left : both.right - box.left,
            ]
            for map_, box in ((mine, a), (its, b))
        ]
        return cv2.countNonZero(cut[0] & cut[1])

    def region_similarity(self, result: MaskContour) -> float:
        """J of `result` against this annotation; 1 where both are empty."""
        intersection = self._shared(self._mask, result, result._mask)
        union = self.area + result.area - intersection
        return intersection / union if union else 1.0

    def contour_accuracy(self, result: MaskContour) -> float:
        """F of `result` against this annotation; 1 where both have no contour."""
        if not self.length or not result.length:
            return float(self.length == result.length)
        precision = self._shared(self._reach, result, result._boundary) / result.length
        recall = self._shared(self._boundary, result, result._reach) / self.length
        if precision + recall == 0:
            return 0.0
        return 2 * precision * recall / (precision + recall)
