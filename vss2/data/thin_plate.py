"""Warping images with a thin-plate spline through random points, as STCN's stage 0 does.

The spline is Bookstein's (1989): U(r) = r^2 log r, an affine part, exact at its points.
"""

from __future__ import annotations

import cv2
import numpy as np

from vss2.data.transforms import Clip
from vss2.errors import InputError


class ThinPlateSpline:
    """The smoothest function of the plane that takes given values at given points.

    Args:
        points: float (N, 2), not all on a line.
        values: float (N, D).

    Raises:
        InputError: the points lie on a line or coincide.
    """

    def __init__(self, points: np.ndarray, values: np.ndarray) -> None:
        count = len(points)
        self.points = np.asarray(points, np.float64)
        plane = np.hstack([np.ones((count, 1)), self.points])
        squares = ((self.points[:, None] - self.points[None]) ** 2).sum(-1)
        system = np.zeros((count + 3, count + 3))
        system[:count, :count] = _kernel(squares)
        system[:count, count:] = plane
        system[count:, :count] = plane.T
        right = np.zeros((count + 3, values.shape[1]))
        right[:count] = values
        try:
            solution = np.linalg.solve(system, right)
        except np.linalg.LinAlgError as error:
            raise InputError("A thin-plate spline needs points that are not on a line.") from error
        self.weights, self.plane = solution[:count], solution[count:]

    def on_grid(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Values at all (x, y), float32 (D, H, W).

        Args:
            x: float (W,). y: float (H,).
        """
        across = (x[None] - self.points[:, :1]).astype(np.float32) ** 2
        down = (y[None] - self.points[:, 1:]).astype(np.float32) ** 2
        weights, plane = self.weights.astype(np.float32), self.plane.astype(np.float32)
        result = plane[0, :, None, None] + plane[1, :, None, None] * x[None, None].astype(
            np.float32
        )
        result = result + plane[2, :, None, None] * y[None, :, None].astype(np.float32)
        # Point by point: a table of all points at once would not fit the processor's cache.
        for row, column, weight in zip(down, across, weights, strict=True):
            bending = _kernel(row[:, None] + column[None])
            for values, factor in zip(result, weight, strict=True):
                values += factor * bending
        return result


def _kernel(squares: np.ndarray) -> np.ndarray:
    """U of squared distances, r^2 log r, 0 at r = 0."""
    return 0.5 * squares * np.log(squares + 1e-12).astype(squares.dtype, copy=False)


def random_warp(
    height: int, width: int, points: int, std: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of a warped image comes from: x and y, float32 (H, W), in pixels.

    `points` pixels of distinct rows and columns move by N(0, std) of the image's size; the spline
    carries the rest along.

    Raises:
        InputError: the image has fewer rows or columns than `points`.
    """
    if min(height, width) < points:
        raise InputError(
            f"A warp by {points} points needs images of at least {points} pixels a side, got "
            f"{height}x{width}."
        )
    columns = rng.permutation(width)[:points] / width
    rows = rng.permutation(height)[:points] / height
    source = np.stack([columns, rows], axis=1)
    target = source + rng.normal(0.0, std, source.shape)
    spline = ThinPlateSpline(target, source - target)
    x, y = np.linspace(0, 1, width), np.linspace(0, 1, height)
    moved = spline.on_grid(x, y)
    moved[0] += x[None].astype(np.float32)
    moved[1] += y[:, None].astype(np.float32)
    return moved[0] * np.float32(width), moved[1] * np.float32(height)


class ThinPlateWarp:
    """Warp each frame with its mask, with probability `prob`, by an own draw (STCN, stage 0).

    Frames are interpolated linearly, masks by the nearest pixel; what comes from outside is 0,
    black, as published.

    Args:
        prob: probability for each frame.
        points: number of points that move.
        std: standard deviation of their moves, as a share of the image's size.
    """

    def __init__(self, prob: float = 0.33, points: int = 12, std: float = 0.02) -> None:
        self.prob = float(prob)
        self.points = int(points)
        self.std = float(std)
        if not 0.0 <= self.prob <= 1.0 or self.points < 3 or self.std < 0:
            raise InputError(
                "ThinPlateWarp needs prob in 0..1, at least 3 points and std >= 0, got "
                f"{prob}, {points} and {std}."
            )

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        """Returns the clip with some frames warped."""
        frames, labels = [], []
        for frame, label in zip(clip.frames, clip.labels, strict=True):
            if rng.random() < self.prob:
                height, width = label.shape
                x, y = random_warp(height, width, self.points, self.std, rng)
                frame = cv2.remap(frame, x, y, cv2.INTER_LINEAR)
                label = cv2.remap(label, x, y, cv2.INTER_NEAREST)
            frames.append(frame)
            labels.append(label)
        return Clip(frames, labels)
