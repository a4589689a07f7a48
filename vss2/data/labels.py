"""From values stored in masks to class ids from 0: one label mapping per data set.

A data set's metadata names its mapping in `label_mapping`; where it names none, that of VSPW serves
(0 = others, 255 = void, class = value - 1).
"""

from __future__ import annotations

import os
from typing import NamedTuple

import cv2
import numpy as np

from vss2.errors import InputError, did_you_mean

IGNORE_LABEL = 255

_RAW = np.arange(256)
# The published mapping. Raw 0 and 255 are not evaluated; raw 125..254 are no classes, but they
# occur in published masks and the published evaluation sees them as ids 124..253.
_REDUCED = np.where((_RAW == 0) | (_RAW == 255), IGNORE_LABEL, _RAW - 1).astype(np.uint8)

# Cityscapes' `labelIds` of the 19 classes that are evaluated, in the order of their train ids.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_CITYSCAPES = np.full(256, IGNORE_LABEL, np.uint8)
_CITYSCAPES[list(_CITYSCAPES_IDS)] = np.arange(len(_CITYSCAPES_IDS))


class StoredLabels(NamedTuple):
    """What the values of a mask file mean.

    Attributes:
        table: uint8 (256,), class id of each stored value; 255 is ignored.
        void: stored values that the convention defines as no class.
    """

    table: np.ndarray
    void: tuple[int, ...]

    def valid(self, num_classes: int) -> np.ndarray:
        """bool (256,): which stored values the convention defines for `num_classes` classes."""
        known = self.table < num_classes
        known[list(self.void)] = True
        return known


_VSPW_LABELS = StoredLabels(_REDUCED, (0, 255))
_CLASS_IDS = StoredLabels(_RAW.astype(np.uint8), (255,))
_CITYSCAPES_LABELS = StoredLabels(
    _CITYSCAPES, (*(i for i in range(34) if i not in _CITYSCAPES_IDS), 255)
)
# "ids": masks hold class ids from 0, and 255. "cityscapes": so do files `*_labelTrainIds.png`;
# files `*_labelIds.png` hold the full ids of Cityscapes.
LABEL_MAPPINGS = ("vspw", "ids", "cityscapes")
DEFAULT_MAPPING = "vspw"


def stored_labels(
    mapping: str = DEFAULT_MAPPING, file_name: str | os.PathLike[str] = ""
) -> StoredLabels:
    """How a mask file of a data set with this label mapping is to be read.

    Args:
        mapping: one of `LABEL_MAPPINGS`.
        file_name: the mask file; only "cityscapes" looks at it.

    Raises:
        InputError: unknown mapping.
    """
    if mapping == "vspw":
        return _VSPW_LABELS
    if mapping == "ids":
        return _CLASS_IDS
    if mapping == "cityscapes":
        whole = os.fspath(file_name).endswith("_labelIds.png")
        return _CITYSCAPES_LABELS if whole else _CLASS_IDS
    raise InputError(
        f"Unknown label mapping {mapping!r}, expected one of {', '.join(LABEL_MAPPINGS)}."
        f"{did_you_mean(mapping, LABEL_MAPPINGS)}"
    )


def _as_uint8(raw: np.ndarray) -> np.ndarray:
    """`raw` as uint8, or an error when a value does not fit."""
    raw = np.asarray(raw)
    if raw.dtype == np.uint8:
        return raw
    if raw.dtype.kind not in "iu":
        raise InputError(f"Labels must be integers, got an array of dtype {raw.dtype}.")
    if raw.size and (raw.min() < 0 or raw.max() > 255):
        raise InputError(f"Labels must be in 0..255, got values {raw.min()}..{raw.max()}.")
    return raw.astype(np.uint8)


def reduce_labels(raw: np.ndarray) -> np.ndarray:
    """Published mapping of raw mask values to class ids, for evaluators.

    0 -> 255, v -> v - 1, 255 -> 255. Stray raw values 125..254 become ids 124..253, as in the
    published evaluation (VSPW baseline, VSS-CFFM).

    Args:
        raw: integer array of any shape, values 0..255.

    Returns:
        uint8 array of the same shape.

    Raises:
        InputError: a value is not an integer in 0..255.
    """
    # Arithmetic modulo 256; a table takes ten times as long.
    reduced = np.subtract(_as_uint8(raw), 1, dtype=np.uint8)
    reduced += (reduced == 254).view(np.uint8)
    return reduced


def class_ids(
    raw: np.ndarray, mapping: str = DEFAULT_MAPPING, file_name: str | os.PathLike[str] = ""
) -> np.ndarray:
    """Stored mask values to class ids by a data set's label mapping, for evaluators.

    Values that the mapping does not define become ids that are no class (see `reduce_labels`).

    Args:
        raw: integer array of any shape, values 0..255.
        mapping, file_name: see `stored_labels`.

    Returns:
        uint8 array of the same shape.

    Raises:
        InputError: a value is not an integer in 0..255, or the mapping is unknown.
    """
    return stored_labels(mapping, file_name).table[_as_uint8(raw)]


def train_labels(
    raw: np.ndarray,
    num_classes: int = 124,
    mapping: str = DEFAULT_MAPPING,
    file_name: str | os.PathLike[str] = "",
) -> np.ndarray:
    """Stored mask values to training ids: `class_ids`, then every id >= `num_classes` is 255.

    Args:
        raw: integer array of any shape, values 0..255.
        num_classes: number of classes, 1..255.
        mapping, file_name: see `stored_labels`.

    Returns:
        uint8 array of the same shape, values 0..num_classes-1 and 255.

    Raises:
        InputError: a value is not an integer in 0..255, `num_classes` is not in 1..255, or the
            mapping is unknown.
    """
    if not 1 <= num_classes <= IGNORE_LABEL:
        raise InputError(f"num_classes must be in 1..{IGNORE_LABEL}, got {num_classes}.")
    table = stored_labels(mapping, file_name).table.copy()
    table[table >= num_classes] = IGNORE_LABEL
    ids = _as_uint8(raw)
    # The same look-up; OpenCV's takes a fifth of the time.
    return cv2.LUT(ids, table) if ids.ndim == 2 and ids.size else table[ids]
