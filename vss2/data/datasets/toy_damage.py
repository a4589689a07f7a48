"""Damage of the toy world: frames that do not tell their labels, while their neighbours do."""

from __future__ import annotations

import cv2
import numpy as np

DAMAGED_SHARE = 0.15


def choose_damaged_frames(num_frames: int, rng: np.random.Generator) -> list[int]:
    """Sorted indices of about `DAMAGED_SHARE` of the frames; never frame 0, never two in a row."""
    expected = DAMAGED_SHARE * num_frames
    count = int(expected) + int(rng.random() < expected % 1)
    chosen: list[int] = []
    for t in rng.permutation(np.arange(1, num_frames)):
        if len(chosen) < count and all(abs(t - other) > 1 for other in chosen):
            chosen.append(int(t))
    return sorted(chosen)


def damage(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Damage a float32 RGB image (H, W, 3) in 0..255: one of four kinds, over most of the frame.

    All kinds take most of the colour away; what is left of the texture is then blurred, drowned in
    noise, cut into dropped blocks or torn into shifted lines.
    """
    kinds = (_blur, _noise, _blocks, _tear)
    kind = kinds[rng.integers(len(kinds))]
    gray = image.mean(axis=2, keepdims=True)
    keep = np.float32(rng.uniform(0.0, 0.12))
    faded = gray + keep * (image - gray)
    spoilt = kind(faded, rng)
    where = _patch(image.shape[:2], rng.uniform(0.6, 0.85), rng)[..., None]
    rest = gray + np.float32(rng.uniform(0.25, 0.6)) * (image - gray)
    return (where * spoilt + (1 - where) * rest).astype(np.float32)


def _patch(shape: tuple[int, int], share: float, rng: np.random.Generator) -> np.ndarray:
    """A soft-edged random region, float32 in [0, 1], that covers about `share` of the frame."""
    field = cv2.resize(
        rng.random((4, 5), dtype=np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC
    )
    level = np.quantile(field, 1 - share)
    return np.clip((field - level) / 0.08 + 0.5, 0, 1)


def _blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    sigma = rng.uniform(0.05, 0.08) * image.shape[0]
    flat = cv2.GaussianBlur(image, (0, 0), sigma)
    return 128 + 0.6 * (flat - 128)


def _noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    return 128 + 0.35 * (image - 128) + rng.uniform(55, 75) * grain


def _blocks(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Square blocks, four in five of them replaced by flat gray."""
    side = max(4, image.shape[0] // 8)
    grid = tuple(-(-s // side) for s in image.shape[:2])
    tone = rng.uniform(40, 190, grid).astype(np.float32)
    tone[rng.random(grid) < 0.2] = np.nan
    tone = np.repeat(np.repeat(tone, side, 0), side, 1)[: image.shape[0], : image.shape[1], None]
    return np.where(np.isnan(tone), image, tone)


def _tear(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bands of lines, each shifted by up to half the width, with flickering brightness."""
    height, width = image.shape[:2]
    torn = image.copy()
    y = 0
    while y < height:
        band = int(rng.integers(1, 5))
        shift = int(rng.integers(-width // 2, width // 2 + 1))
        gain = rng.uniform(0.5, 1.3)
        torn[y : y + band] = np.roll(image[y : y + band], shift, axis=1) * gain
        y += band
    return torn
