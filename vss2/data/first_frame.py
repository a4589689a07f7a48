"""Given masks: object ids from a file, checked before hours are spent on what is not there.

People ran five objects as 54, because their mask had been resized with interpolation.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vss2.data.image_io import StrPath, read_label
from vss2.errors import InputError, InputFileError

logger = logging.getLogger(__name__)

MAX_OBJECTS = 20
_SHOWN = 12
_BETWEEN_SHARE = 0.8  # of an id's pixels; cubic interpolation also overshoots
_NEAREST = (
    "Save masks as PNG with a palette and resize them with the nearest pixel only "
    "(PIL: Image.NEAREST, OpenCV: INTER_NEAREST)."
)


def read_object_mask(
    path: StrPath,
    frame_size: Sequence[int] | None = None,
    max_objects: int = MAX_OBJECTS,
    objects: Sequence[int] | None = None,
) -> np.ndarray:
    """Object ids of a given mask, a palette or grey PNG; 0 is the background.

    Args:
        path: the file.
        frame_size: (height, width) of the frame that it belongs to; None: not compared.
        max_objects: how many ids are believed.
        objects: ids that must be there; None: those that are.

    Returns:
        uint8 (H, W).

    Raises:
        InputFileError: the file is missing or damaged.
        InputError: a colour image; sizes differ; more ids than `max_objects`; smoothed edges; an
            id of `objects` that is not there. Says what was found and how to mend it.
    """
    try:
        mask = read_label(path)
    except InputFileError:
        raise
    except InputError as error:
        raise InputError(_colour_message(path, str(error))) from error
    check_object_mask(mask, path, frame_size, max_objects, objects)
    return mask


def check_object_mask(
    mask: np.ndarray,
    name: StrPath,
    frame_size: Sequence[int] | None = None,
    max_objects: int = MAX_OBJECTS,
    objects: Sequence[int] | None = None,
) -> None:
    """See `read_object_mask`; for a mask uint8 (H, W) that has been read, called `name`.

    Raises:
        InputError: see there.
    """
    if frame_size is not None and mask.shape != tuple(frame_size):
        raise InputError(
            f"The mask {name} is {mask.shape[0]}x{mask.shape[1]}, its frame "
            f"{frame_size[0]}x{frame_size[1]}: they must have one size. Make the mask for this "
            f"frame, or resize it to the frame's size. {_NEAREST}"
        )
    ids = [int(i) for i in np.unique(mask) if i]
    between = _ids_between_regions(mask, ids)
    if len(between) > 1:
        raise InputError(
            f"The mask {name} has {len(ids)} ids, but {len(between)} of them ({_few(between)}) lie "
            f"only along the edges of others ({_few([i for i in ids if i not in between])}): it "
            f"was smoothed. {_NEAREST}"
        )
    if len(ids) > max_objects:
        raise InputError(
            f"The mask {name} has {len(ids)} ids ({_few(ids)}), more than max_objects = "
            f"{max_objects}. If it was resized or saved with loss: {_NEAREST} If there are so "
            f"many objects, raise max_objects to {len(ids)}."
        )
    if between:
        logger.warning(
            "The mask %s: id %d lies only along the edge between two others. Was it smoothed?",
            name,
            between[0],
        )
    missing = [i for i in objects or () if i not in ids]
    if missing:
        raise InputError(
            f"The mask {name} has no pixel of object {_few(missing)}; it has "
            f"{_few(ids) or 'none'}. List the ids that the mask holds, or paint the object."
        )


def _few(ids: Sequence[int]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(map(str, ids[:_SHOWN])) + more


def _ids_between_regions(mask: np.ndarray, ids: Sequence[int]) -> list[int]:
    """Ids that interpolation makes: nowhere 3x3 pixels large, between a lower and a
    higher id."""
    square = np.ones((3, 3), np.uint8)
    around = np.ones((5, 5), np.uint8)
    solid_id = np.where(cv2.erode(mask, square) == cv2.dilate(mask, square), mask, 0)
    solid = cv2.dilate(solid_id, square) == mask  # of regions with a core
    thin = [i for i in ids if not np.any(solid_id == i)]
    if not thin:
        return []
    low = cv2.erode(np.where(solid, mask, 255).astype(np.uint8), around)
    high = cv2.dilate(np.where(solid, mask, 0).astype(np.uint8), around)
    inside = (low < mask) & (mask < high)
    return [i for i in thin if np.mean(inside[mask == i]) > _BETWEEN_SHARE]


def _colour_message(path: StrPath, found: str) -> str:
    """The message for a file that is no palette or grey image, with its colours."""
    try:
        with Image.open(io.BytesIO(Path(path).read_bytes())) as image:
            colours = image.convert("RGB").getcolors(maxcolors=MAX_OBJECTS + 1)
    except (OSError, ValueError):
        return found
    if colours is None:
        what = f"It has more than {MAX_OBJECTS} colours, so it was smoothed too."
    else:
        listed = ", ".join(str(colour) for _, colour in sorted(colours, reverse=True)[:_SHOWN])
        what = f"Its colours are {listed}."
    return (
        f"{found} {what} Give each colour an id and save the ids as a palette PNG "
        "(vss2.data.image_io.write_label)."
    )
