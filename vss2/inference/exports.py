"""Forms of a frame's result for other programs: COCO run-length masks, scores; and palettes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from vss2.data.image_io import write_bytes
from vss2.errors import InputError, InputFileError

Color = tuple[int, int, int]


def rle_document(
    labels: np.ndarray,
    name: str,
    index: int,
    class_names: Sequence[str],
    background: int | None = None,
) -> dict[str, Any]:
    """Masks of the classes or objects that occur, as COCO annotations.

    Args:
        labels: uint8 (H, W); ids without a name, such as 255, are left out.
        name, index: of the frame.
        class_names: of ids 0, 1, …
        background: an id that is left out too.

    Returns:
        `file_name`, `image_id`, `height`, `width` and `annotations`: one a class in ascending
        order with `image_id`, `category_id` (0-based), `category_name`, `area` (pixels), `bbox`
        (x, y, width, height) and `segmentation` (COCO's compressed RLE, counts as text).
    """
    height, width = labels.shape
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[: len(class_names)])
    annotations = []
    for k in (int(i) for i in present if i != background):
        code = coco_mask.encode(np.asfortranarray(labels == k, dtype=np.uint8))
        annotations.append(
            {
                "image_id": index,
                "category_id": k,
                "category_name": class_names[k],
                "area": int(coco_mask.area(code)),
                "bbox": [float(v) for v in coco_mask.toBbox(code)],
                "segmentation": {"size": [height, width], "counts": code["counts"].decode()},
            }
        )
    return {
        "file_name": name,
        "image_id": index,
        "height": height,
        "width": width,
        "annotations": annotations,
    }


def write_json(path: Path, document: Any) -> None:
    """Write JSON atomically."""
    write_bytes(path, (json.dumps(document, allow_nan=False) + "\n").encode())


def write_scores(path: Path, scores: np.ndarray) -> None:
    """Write an .npz with the array `scores` atomically; it is not compressed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                np.savez(file, scores=scores)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputFileError(f"Cannot write the file {path}: {reason}.") from error


def read_palette(path: str | Path) -> tuple[list[str], list[Color]]:
    """Class names and colours of ids 0, 1, … from a JSON file.

    The file holds a list with one `{"name": "sky", "color": [126, 182, 240]}` a class.

    Raises:
        InputFileError: the file is missing.
        InputError: it is no such list; names the entry.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise InputFileError(f"Cannot read the palette {path}: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"The palette {path} is not JSON: {error}.") from error
    if not isinstance(entries, list) or not entries:
        raise InputError(f"The palette {path} must be a list with one entry for each class.")
    names: list[str] = []
    color: Any
    colors: list[Color] = []
    for k, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else None
        color = entry.get("color") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _is_color(color):
            raise InputError(
                f"The palette {path}: entry {k} must be "
                '{"name": "...", "color": [r, g, b]} with whole numbers 0 to 255, '
                f"got {json.dumps(entry)[:80]}."
            )
        names.append(name)
        colors.append((color[0], color[1], color[2]))
    return names, colors


def _is_color(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(v) is int and 0 <= v <= 255 for v in value)
    )
