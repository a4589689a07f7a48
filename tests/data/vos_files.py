"""Tiny files in the layouts of the sets of video object segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vss2.data.image_io import write_image, write_label
from vss2.data.vos_palette import DAVIS_PALETTE


def object_ids(height: int, width: int, index: int, ids: Sequence[int] = (1, 2)) -> np.ndarray:
    """A square of 8 pixels for each id, in a row, moving right by `index` pixels; uint8."""
    mask = np.zeros((height, width), np.uint8)
    for k, value in enumerate(ids):
        left = 2 + 10 * k + index
        mask[4:12, left : left + 8] = value
    return mask


def write_frames(
    folder: Path,
    mask_folder: Path | None,
    stems: Sequence[str],
    size: tuple[int, int] = (24, 40),
    ids: Sequence[int] = (1, 2),
) -> None:
    """`<stem>.jpg` (grey level 10 * position) and, with a mask folder, `<stem>.png`."""
    for index, stem in enumerate(stems):
        image = np.full((*size, 3), 10 * index, np.uint8)
        write_image(folder / f"{stem}.jpg", image)
        if mask_folder is not None:
            mask = object_ids(*size, index, ids)
            write_label(mask_folder / f"{stem}.png", mask, DAVIS_PALETTE)


def stems(count: int, step: int = 1) -> list[str]:
    return [f"{index:05d}" for index in range(0, count * step, step)]
