"""Clip-consistent augmentation on uint8 frames, and the resize of evaluation.

The training pipeline and its constants are those published with CFFM (CVPR 2022) and MRCFA
(ECCV 2022): resize, crop, flip (one draw for all frames of a clip), then photometric distortion
(an own draw for every frame). Every draw comes from the generator that the caller gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from vss2.data.labels import IGNORE_LABEL
from vss2.errors import InputError


@dataclass
class Clip:
    """Frames and label maps of equal length, all of one size.

    Attributes:
        frames: T arrays uint8 (H, W, 3), RGB.
        labels: T arrays uint8 (H, W), class ids and 255.
    """

    frames: list[np.ndarray]
    labels: list[np.ndarray]


def _pair(values: Sequence[float], name: str) -> tuple[float, float]:
    """Two numbers of a config's list."""
    pair = tuple(values)
    if len(pair) != 2:
        raise InputError(f"{name} must have two values, got {list(pair)}.")
    return pair[0], pair[1]


def _ordered(values: Sequence[float], name: str) -> tuple[float, float]:
    """The two ends (low, high) of a range that must not be negative or reversed."""
    low, high = (float(value) for value in _pair(values, name))
    if not 0 <= low <= high:
        raise InputError(f"{name} must be a range with 0 <= low <= high, got [{low}, {high}].")
    return low, high


def _positive(values: Sequence[float], name: str) -> tuple[int, int]:
    """Two integers of at least 1."""
    first, second = (int(value) for value in _pair(values, name))
    if first < 1 or second < 1:
        raise InputError(f"{name} must be positive, got [{first}, {second}].")
    return first, second


def fit_size(height: int, width: int, box: tuple[int, int]) -> tuple[int, int]:
    """Size (height, width) of an image scaled to fit `box`, keeping its aspect.

    The box has no orientation: its long edge bounds the image's long edge, its short edge the
    short one. Sides are rounded as int(side * factor + 0.5), at least 1.
    """
    factor = min(max(box) / max(height, width), min(box) / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def _resize(array: np.ndarray, height: int, width: int, interpolation: int) -> np.ndarray:
    if array.shape[:2] == (height, width):
        return array
    return cv2.resize(array, (width, height), interpolation=interpolation)


class RandomResize:
    """Scale a clip by one random ratio of a box that it fits into; bilinear, labels nearest.

    Args:
        scale: box at ratio 1, (long edge, short edge).
        ratio_range: the ratio is uniform in this range.
    """

    def __init__(
        self, scale: Sequence[int] = (853, 480), ratio_range: Sequence[float] = (0.5, 2.0)
    ) -> None:
        self.scale = _positive(scale, "RandomResize.scale")
        self.ratio_range = _ordered(ratio_range, "RandomResize.ratio_range")

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        """Returns the clip in its new size."""
        ratio = rng.uniform(*self.ratio_range)
        box = (int(self.scale[0] * ratio), int(self.scale[1] * ratio))
        height, width = clip.frames[0].shape[:2]
        height, width = fit_size(height, width, box)
        return Clip(
            [_resize(frame, height, width, cv2.INTER_LINEAR) for frame in clip.frames],
            [_resize(label, height, width, cv2.INTER_NEAREST) for label in clip.labels],
        )


class RandomCrop:
    """Cut one random box out of all frames; a side shorter than the box is taken whole.

    The box is judged on the target's (last frame's) labels: more than one class, and none with
    `max_category_ratio` or more of the labelled pixels. After `tries` refused boxes one more is
    drawn and used unchecked.

    Args:
        size: (height, width) of the box.
        max_category_ratio: 1.0 switches the check off.
        tries: how many boxes are checked.
    """

    def __init__(
        self,
        size: Sequence[int] = (480, 480),
        max_category_ratio: float = 0.75,
        tries: int = 10,
    ) -> None:
        self.size = _positive(size, "RandomCrop.size")
        self.max_category_ratio = float(max_category_ratio)
        self.tries = int(tries)

    def _draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, slice]:
        """A box that lies in an image of `shape`."""
        top = int(rng.integers(0, max(shape[0] - self.size[0], 0) + 1))
        left = int(rng.integers(0, max(shape[1] - self.size[1], 0) + 1))
        return slice(top, top + self.size[0]), slice(left, left + self.size[1])

    def _accepts(self, label: np.ndarray) -> bool:
        """Whether the cut label map (h, w) is varied enough."""
        # In float32, exact up to 2**24 pixels; several times as fast as np.bincount.
        counts = cv2.calcHist([label], [0], None, [256], [0, 256]).ravel()
        counts[IGNORE_LABEL] = 0
        several = np.count_nonzero(counts) > 1
        return bool(
            several and float(counts.max()) / counts.sum(dtype=float) < self.max_category_ratio
        )

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        """Returns the cut clip, at most `size` large."""
        target = clip.labels[-1]
        box = self._draw(target.shape, rng)
        if self.max_category_ratio < 1.0:
            for _ in range(self.tries):
                if self._accepts(target[box]):
                    break
                box = self._draw(target.shape, rng)
        return Clip([frame[box] for frame in clip.frames], [label[box] for label in clip.labels])


class RandomFlip:
    """Mirror the whole clip left to right with probability `prob`."""

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = float(prob)
        if not 0.0 <= self.prob <= 1.0:
            raise InputError(f"RandomFlip.prob must be in 0..1, got {self.prob}.")

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        """Returns the clip or its mirror image."""
        if rng.random() >= self.prob:
            return clip
        return Clip(
            [cv2.flip(frame, 1) for frame in clip.frames],
            [cv2.flip(label, 1) for label in clip.labels],
        )


def _affine(gain: float = 1.0, bias: float = 0.0) -> np.ndarray:
    """Table uint8 (256,) of gain * x + bias in float32, clipped to 0..255 and truncated."""
    values = np.arange(256, dtype=np.float32) * np.float32(gain) + np.float32(bias)
    return np.clip(values, 0, 255).astype(np.uint8)


def _map_channel(image: np.ndarray, channel: int, table: np.ndarray) -> None:
    """Send one channel through a table, in place."""
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(image, channel), table), image, channel)


def _joined(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    """The table of two tables in turn; None stands for a table that changes nothing."""
    if first is None or second is None:
        return second if first is None else first
    return second[first]


class PhotoMetricDistortion:
    """Brightness, contrast, saturation and hue, drawn for every frame on its own.

    Each of the four happens with probability 0.5; a coin decides whether contrast comes before or
    after the colour steps. The result of every step is rounded down to uint8. HSV is OpenCV's
    (hue in 0..179); OpenCV computes the same HSV from RGB as from BGR order.

    Args:
        brightness_delta: brightness changes by uniform(-delta, delta).
        contrast_range: factor on all channels.
        saturation_range: factor on S.
        hue_delta: H changes by an integer in [-delta, delta - 1], modulo 180; 0 leaves it alone.
    """

    def __init__(
        self,
        brightness_delta: float = 32,
        contrast_range: Sequence[float] = (0.5, 1.5),
        saturation_range: Sequence[float] = (0.5, 1.5),
        hue_delta: int = 18,
    ) -> None:
        self.brightness_delta = float(brightness_delta)
        self.contrast_range = _ordered(contrast_range, "PhotoMetricDistortion.contrast_range")
        self.saturation_range = _ordered(saturation_range, "PhotoMetricDistortion.saturation_range")
        self.hue_delta = int(hue_delta)
        if self.brightness_delta < 0 or self.hue_delta < 0:
            raise InputError(
                "PhotoMetricDistortion needs brightness_delta >= 0 and hue_delta >= 0, got "
                f"{self.brightness_delta} and {self.hue_delta}."
            )

    def _brightness(self, rng: np.random.Generator) -> np.ndarray | None:
        """Table uint8 (256,), None where the draw says to leave the frame alone."""
        if rng.integers(2):
            return _affine(bias=rng.uniform(-self.brightness_delta, self.brightness_delta))
        return None

    def _contrast(self, rng: np.random.Generator) -> np.ndarray | None:
        """Table uint8 (256,), None where the draw says to leave the frame alone."""
        if rng.integers(2):
            return _affine(gain=rng.uniform(*self.contrast_range))
        return None

    def _saturation(self, frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not rng.integers(2):
            return frame
        hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
        _map_channel(hsv, 1, _affine(gain=rng.uniform(*self.saturation_range)))
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)

    def _hue(self, frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.hue_delta or not rng.integers(2):
            return frame
        # One conversion for both colour steps would be faster, but would skip the rounding
        # between them.
        hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
        shift = int(rng.integers(-self.hue_delta, self.hue_delta))
        table = ((np.arange(256) + shift) % 180).astype(np.uint8)
        _map_channel(hsv, 0, table)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)

    def _distort(self, frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One frame with its own draws."""
        table = self._brightness(rng)
        contrast_first = rng.integers(2)
        if contrast_first:
            # Rounded between the two, as in two passes over the frame.
            table = _joined(table, self._contrast(rng))
        frame = np.ascontiguousarray(frame) if table is None else cv2.LUT(frame, table)
        frame = self._saturation(frame, rng)
        frame = self._hue(frame, rng)
        if not contrast_first and (table := self._contrast(rng)) is not None:
            frame = cv2.LUT(frame, table)
        return frame

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        """Returns the clip with changed colours and the same labels."""
        return Clip([self._distort(frame, rng) for frame in clip.frames], clip.labels)


class TestResize:
    """Resize of evaluation: fit the box keeping the aspect, then both sides up to a multiple.

    The second step is a bilinear resize too, not padding: 480x853 becomes 480x864.

    Args:
        scale: box, (long edge, short edge).
        size_divisor: both sides become multiples of this.
    """

    __test__ = False  # the name is no test class

    def __init__(self, scale: Sequence[int] = (853, 480), size_divisor: int = 32) -> None:
        self.scale = _positive(scale, "TestResize.scale")
        self.size_divisor = int(size_divisor)
        if self.size_divisor < 1:
            raise InputError(f"TestResize.size_divisor must be >= 1, got {size_divisor}.")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) -> uint8 (H', W', 3), H' and W' multiples of `size_divisor`."""
        height, width = fit_size(image.shape[0], image.shape[1], self.scale)
        image = _resize(image, height, width, cv2.INTER_LINEAR)
        divisor = self.size_divisor
        height, width = (math.ceil(side / divisor) * divisor for side in (height, width))
        return _resize(image, height, width, cv2.INTER_LINEAR)
