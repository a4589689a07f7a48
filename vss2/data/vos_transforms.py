"""Augmentation of clips of objects: affine moves, crops and colours, as STCN's recipe has them.

A `Clip`'s labels are object ids here, or, in stage 0, a soft mask 0 to 255. Each step is drawn once
for the clip, or for every frame where it says `per_frame`. Affine moves interpolate with OpenCV,
resizing with Pillow, whose bicubic filter widens when it shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from PIL import Image

from vss2.data.transforms import Clip
from vss2.errors import InputError

MEAN_COLOUR = (124, 116, 104)  # fills what lies outside of an image; 0 outside of a mask

_OPENCV = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
}
_GREY = np.array([0.299, 0.587, 0.114], np.float32)

FrameStep = Callable[[np.ndarray], np.ndarray]


def _range(values: Sequence[float], name: str, low: float) -> tuple[float, float]:
    """Two ascending numbers of at least `low`."""
    if len(values) != 2 or not low <= values[0] <= values[1]:
        raise InputError(f"{name} must be two ascending numbers from {low} on, got {list(values)}.")
    return float(values[0]), float(values[1])


def _interpolation(name: str) -> int:
    if name not in _OPENCV:
        raise InputError(f"interpolation is one of {', '.join(_OPENCV)}, got {name!r}.")
    return _OPENCV[name]


class RandomAffine:
    """Rotate, scale and shear about the centre; the size stays.

    Args:
        degrees: the angle is uniform in -degrees..degrees.
        scale: range of the factor.
        shear: the x-shear is uniform in -shear..shear, degrees.
        interpolation, mask_interpolation: "nearest", "bilinear" or "bicubic".
        per_frame: an own draw for every frame.
    """

    def __init__(
        self,
        degrees: float = 0.0,
        scale: Sequence[float] = (1.0, 1.0),
        shear: float = 0.0,
        interpolation: str = "bicubic",
        mask_interpolation: str = "nearest",
        per_frame: bool = True,
    ) -> None:
        self.degrees = float(degrees)
        self.scale = _range(scale, "RandomAffine.scale", 0.0)
        self.shear = float(shear)
        self.interpolation = _interpolation(interpolation)
        self.mask_interpolation = _interpolation(mask_interpolation)
        self.per_frame = bool(per_frame)

    def _matrix(self, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """Where a pixel goes, (2, 3)."""
        angle = math.radians(rng.uniform(-self.degrees, self.degrees))
        factor = rng.uniform(*self.scale)
        slant = math.tan(math.radians(rng.uniform(-self.shear, self.shear)))
        cosine, sine = math.cos(angle), math.sin(angle)
        turn = factor * np.array([[cosine, -cosine * slant - sine], [sine, -sine * slant + cosine]])
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        return np.hstack([turn, (centre - turn @ centre)[:, None]])

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        """Returns the moved clip."""
        height, width = clip.labels[0].shape
        matrix = self._matrix(height, width, rng)
        frames, labels = [], []
        for t, (frame, label) in enumerate(zip(clip.frames, clip.labels, strict=True)):
            if t and self.per_frame:
                matrix = self._matrix(height, width, rng)
            frames.append(
                cv2.warpAffine(
                    frame,
                    matrix,
                    (width, height),
                    flags=self.interpolation,
                    borderValue=MEAN_COLOUR,
                )
            )
            labels.append(
                cv2.warpAffine(label, matrix, (width, height), flags=self.mask_interpolation)
            )
        return Clip(frames, labels)


def _pillow_resize(array: np.ndarray, height: int, width: int, nearest: bool) -> np.ndarray:
    if array.shape[:2] == (height, width):
        return array
    method = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(array).resize((width, height), method))


def _resized(clip: Clip, height: int, width: int) -> Clip:
    """Frames bicubic, labels nearest."""
    return Clip(
        [_pillow_resize(frame, height, width, nearest=False) for frame in clip.frames],
        [_pillow_resize(label, height, width, nearest=True) for label in clip.labels],
    )


class RandomResizedCrop:
    """Cut one random box out of all frames and resize it; frames bicubic, masks nearest.

    The box covers a share of the area and has a random aspect; after ten boxes that do not fit
    a central one is taken.

    Args:
        size: (height, width) of the result.
        scale: range of the share of the area.
        ratio: range of width / height, uniform in its logarithm.
    """

    def __init__(
        self,
        size: Sequence[int] = (384, 384),
        scale: Sequence[float] = (0.36, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
    ) -> None:
        self.size = _size(size, "RandomResizedCrop.size")
        self.scale = _range(scale, "RandomResizedCrop.scale", 0.0)
        self.ratio = _range(ratio, "RandomResizedCrop.ratio", 1e-6)

    def _box(self, height: int, width: int, rng: np.random.Generator) -> tuple[slice, slice]:
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                return slice(top, top + h), slice(left, left + w)
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
        top, left = (height - h) // 2, (width - w) // 2
        return slice(top, top + h), slice(left, left + w)

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        """Returns the clip of `size`."""
        height, width = clip.labels[0].shape
        box = self._box(height, width, rng)
        cut = Clip([frame[box] for frame in clip.frames], [label[box] for label in clip.labels])
        return _resized(cut, *self.size)


def _size(size: Sequence[int], name: str) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"{name} must be (height, width), got {list(size)}.")
    return int(size[0]), int(size[1])


class ResizeShorterSide:
    """Resize so that the shorter side has `size` pixels; frames bicubic, masks nearest.

    The longer side is truncated to whole pixels.
    """

    def __init__(self, size: int = 384) -> None:
        self.size = int(size)
        if self.size < 1:
            raise InputError(f"ResizeShorterSide.size must be at least 1, got {size}.")

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        """Returns the resized clip; `rng` is not used."""
        height, width = clip.labels[0].shape
        short, long = min(height, width), int(self.size * max(height, width) / min(height, width))
        if short == self.size:
            return clip
        return _resized(clip, *((self.size, long) if height < width else (long, self.size)))


class RandomFrameCrop:
    """Cut a box out of every frame, drawn for each; a frame that is too small is padded first.

    Args:
        size: (height, width) of the box.
    """

    def __init__(self, size: Sequence[int] = (384, 384)) -> None:
        self.size = _size(size, "RandomFrameCrop.size")

    def _padded(self, image: np.ndarray, fill: Sequence[int]) -> np.ndarray:
        """At least `size` large; what lacks is added on both sides, so the box may lie anywhere."""
        height, width = image.shape[:2]
        down, right = max(self.size[0] - height, 0), max(self.size[1] - width, 0)
        if not down and not right:
            return image
        return cv2.copyMakeBorder(
            image, down, down, right, right, cv2.BORDER_CONSTANT, value=list(fill)
        )

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        """Returns the clip of `size`."""
        frames, labels = [], []
        for frame, label in zip(clip.frames, clip.labels, strict=True):
            frame, label = self._padded(frame, MEAN_COLOUR), self._padded(label, (0,))
            top = int(rng.integers(label.shape[0] - self.size[0] + 1))
            left = int(rng.integers(label.shape[1] - self.size[1] + 1))
            box = slice(top, top + self.size[0]), slice(left, left + self.size[1])
            frames.append(frame[box])
            labels.append(label[box])
        return Clip(frames, labels)


class RepeatFrame:
    """Make a clip of a single image: `count` equal frames, for later steps to move apart."""

    def __init__(self, count: int = 3) -> None:
        self.count = int(count)

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        """Returns the longer clip; `rng` is not used."""
        if len(clip.frames) != 1:
            raise InputError(f"RepeatFrame takes single images, got {len(clip.frames)} frames.")
        return Clip(clip.frames * self.count, clip.labels * self.count)


class ColorJitter:
    """Brightness, contrast, saturation and hue, by random factors in a random order.

    Args:
        brightness, contrast, saturation: the factor is uniform in 1 - x..1 + x; 0 leaves it.
        hue: the hue turns by a share of the circle uniform in -hue..hue.
        per_frame: an own draw for every frame.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        per_frame: bool = False,
    ) -> None:
        self.spans = (float(brightness), float(contrast), float(saturation), float(hue))
        self.per_frame = bool(per_frame)
        if not all(0 <= span <= 1 for span in self.spans) or hue > 0.5:
            raise InputError(
                "ColorJitter needs brightness, contrast and saturation in 0..1 and hue in "
                f"0..0.5, got {list(self.spans)}."
            )

    def _steps(self, rng: np.random.Generator) -> list[FrameStep]:
        """What one draw does to a frame, in its order."""
        kinds = (_brightness, _contrast, _saturation, _hue)
        steps = []
        for kind in rng.permutation(4):
            if span := self.spans[kind]:
                steps.append(kinds[kind](rng.uniform(-span, span)))
        return steps

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        """Returns the clip with changed colours and the same labels."""
        frames, steps = [], self._steps(rng)
        for t, frame in enumerate(clip.frames):
            if t and self.per_frame:
                steps = self._steps(rng)
            for step in steps:
                frame = step(frame)
            frames.append(frame)
        return Clip(frames, clip.labels)


def _table(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


_LEVELS = np.arange(256, dtype=np.float32)


def _brightness(change: float) -> FrameStep:
    table = _table(_LEVELS * np.float32(1 + change))
    return lambda frame: cv2.LUT(np.ascontiguousarray(frame), table)


def _contrast(change: float) -> FrameStep:
    """Moves colours away from the frame's mean grey."""

    def step(frame: np.ndarray) -> np.ndarray:
        frame = np.ascontiguousarray(frame)
        mean = round(float(cv2.mean(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))[0]))
        return cv2.LUT(frame, _table(mean + (_LEVELS - mean) * np.float32(1 + change)))

    return step


def _saturation(change: float) -> FrameStep:
    """Moves colours away from the grey of their pixel."""
    mix = np.eye(3, dtype=np.float32) * (1 + change) - np.float32(change) * _GREY[None]
    return lambda frame: cv2.transform(np.ascontiguousarray(frame), mix)


def _hue(change: float) -> FrameStep:
    shift = round(change * 256)

    def step(frame: np.ndarray) -> np.ndarray:
        hsv = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2HSV_FULL)
        hsv[..., 0] += np.uint8(shift % 256)  # modulo 256, as the circle
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)

    return step


class RandomGrayscale:
    """Take the colour out of the whole clip with probability `prob`."""

    def __init__(self, prob: float = 0.05) -> None:
        self.prob = float(prob)
        if not 0.0 <= self.prob <= 1.0:
            raise InputError(f"RandomGrayscale.prob must be in 0..1, got {self.prob}.")

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        """Returns the clip, grey or not; frames keep three channels."""
        if rng.random() >= self.prob:
            return clip
        frames = []
        for frame in clip.frames:
            grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
            frames.append(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB))
        return Clip(frames, clip.labels)
