"""Mask values that are no label of their data set, and what probably put them there."""

from __future__ import annotations

import os
from typing import NamedTuple

import cv2
import numpy as np

from vss2.data.labels import DEFAULT_MAPPING, stored_labels

OFF_BY_ONE = "off_by_one"
ANTI_ALIASED = "anti_aliased"
UNKNOWN = "out_of_range"

# Of the stray pixels of a smoothed mask, few continue to the right or below; of a wrong region,
# nearly all do.
_FLAT_SHARE = 0.5
_NAMES_SHOWN = 5


class StrayLabels(NamedTuple):
    """Stray values of one mask.

    Attributes:
        values: the stored values that are no label, ascending.
        pixels: how many pixels have one.
        cause: `OFF_BY_ONE`, `ANTI_ALIASED` or `UNKNOWN`.
        message: values, share of pixels and likely cause, in words.
    """

    values: tuple[int, ...]
    pixels: int
    cause: str
    message: str


def histogram(label: np.ndarray) -> np.ndarray:
    """Pixels per value, int (256,), of a uint8 label map (H, W)."""
    return cv2.calcHist([label], [0], None, [256], [0, 256]).ravel().astype(np.int64)


def find_stray_labels(
    label: np.ndarray,
    num_classes: int,
    mapping: str = DEFAULT_MAPPING,
    file_name: str | os.PathLike[str] = "",
) -> StrayLabels | None:
    """The stray values of a mask as stored, uint8 (H, W); None where there are none.

    Args:
        label: as `read_label` gives it.
        num_classes: of the data set.
        mapping, file_name: see `vss2.data.labels.stored_labels`.
    """
    stored = stored_labels(mapping, file_name)
    counts = histogram(label)
    stray = (counts > 0) & ~stored.valid(num_classes)
    if not stray.any():
        return None
    values = tuple(np.flatnonzero(stray).tolist())
    pixels = int(counts[stray].sum())
    highest = int(np.flatnonzero(stored.table < num_classes).max())
    cause, words = _likely_cause(label, values, highest)
    shown = ", ".join(map(str, values[:_NAMES_SHOWN]))
    more = f" and {len(values) - _NAMES_SHOWN} more" if len(values) > _NAMES_SHOWN else ""
    message = (
        f"{pixels} of {label.size} pixels hold {shown}{more}, but labels end at {highest}: {words}"
    )
    return StrayLabels(values, pixels, cause, message)


def _likely_cause(label: np.ndarray, values: tuple[int, ...], highest: int) -> tuple[str, str]:
    """What the stray values look like, and the sentence about it."""
    if values == (highest + 1,):
        return OFF_BY_ONE, "off by one, every label is probably one too high"
    if values == (254,):
        return OFF_BY_ONE, "off by one, void (255) was probably lowered with the labels"
    if _flat_share(label, values) < _FLAT_SHARE:
        return (
            ANTI_ALIASED,
            "anti-aliased, the mask was probably resized with interpolation or saved with loss",
        )
    if len(values) >= _NAMES_SHOWN:
        return UNKNOWN, "probably a colour mask that was turned to grey, or other label ids"
    return UNKNOWN, "probably other label ids than the data set's"


def _flat_share(label: np.ndarray, values: tuple[int, ...]) -> float:
    """Share of the stray pixels whose right and lower neighbours hold the same value."""
    inner = label[:-1, :-1]
    stray = np.isin(inner, values)
    if not stray.any():
        return 1.0
    flat = (inner == label[:-1, 1:]) & (inner == label[1:, :-1])
    return float(np.count_nonzero(flat & stray) / np.count_nonzero(stray))
