"""Images and label maps: reading and writing, with errors that name the file.

Writers are atomic: a reader sees the old file, the whole new file or none, never a part.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vss2.errors import InputError, InputFileError

StrPath = str | os.PathLike[str]

_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def _read_bytes(path: StrPath) -> bytes:
    """The bytes of a file that must not be empty."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputFileError(f"Cannot read the file {path}: {reason}.") from error
    if not data:
        raise InputFileError(f"The file {path} is empty (0 bytes).")
    return data


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether a JPEG has an end-of-image marker after the start of its scan.

    Decoders fill what is missing with grey without saying so. Header segments are skipped by
    their length, because an embedded preview has an end marker of its own; inside the scan the
    marker cannot occur by chance (0xFF is escaped there).
    """
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker == 0xDA:  # start of scan
            break
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a length
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return data.rfind(b"\xff\xd9", position) != -1  # from the end, where it should be


def is_whole(data: bytes) -> bool:
    """False for a JPEG or PNG file that lacks its end, i.e. that was cut off."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg_is_whole(data)
    return not data.startswith(b"\x89PNG") or data.rfind(b"IEND") != -1


def read_image_bytes(path: StrPath) -> bytes:
    """The bytes of an image file, not decoded.

    Raises:
        InputFileError: the file is missing, empty, or a JPEG or PNG that was cut off.
    """
    data = _read_bytes(path)
    if not is_whole(data):
        raise InputFileError(
            f"The image {path} is cut off: its end is missing ({len(data)} bytes are there)."
        )
    return data


def read_image(path: StrPath) -> np.ndarray:
    """Read an image as the published VSPW pipelines do (OpenCV), but in RGB order.

    Returns:
        uint8 array (H, W, 3), RGB, contiguous.

    Raises:
        InputFileError: the file is missing, empty, cut off or not an image.
    """
    data = read_image_bytes(path)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise InputFileError(f"Cannot decode the image {path}: {error.err}.") from error
    if image is None:
        raise InputFileError(f"Cannot decode the image {path}: it is corrupt or not an image.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_label(path: StrPath) -> np.ndarray:
    """Read a label map as stored: the palette index, or the gray value.

    Returns:
        uint8 array (H, W).

    Raises:
        InputFileError: the file is missing, empty, cut off or not an image.
        InputError: the image has colour channels or more than 8 bits.
    """
    data = read_image_bytes(path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = image.mode
            label = np.array(image)
    except _DECODE_ERRORS as error:
        raise InputFileError(f"Cannot decode the label map {path}: {error}.") from error
    if mode not in ("P", "L"):
        raise InputError(
            f"The label map {path} must be an 8-bit palette or gray image, got mode {mode!r}"
            f"{' (a colour image)' if label.ndim == 3 else ''}."
        )
    return label


def write_bytes(path: StrPath, data: bytes) -> None:
    """Write a file atomically; missing parent folders are made.

    Raises:
        InputFileError: the file cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputFileError(f"Cannot write the file {path}: {reason}.") from error


def write_image(path: StrPath, rgb: np.ndarray) -> None:
    """Write an image atomically in the format that the suffix names (.png, .jpg, ...).

    Args:
        rgb: uint8 array (H, W, 3), RGB.

    Raises:
        InputError: wrong shape or dtype, or a suffix that OpenCV cannot write.
        InputFileError: the file cannot be written.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise InputError(
            f"Cannot write {path}: expected a uint8 image (H, W, 3), got {rgb.dtype} {rgb.shape}."
        )
    suffix = Path(path).suffix
    try:
        done, data = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise InputError(f"Cannot write {path}: no image format for suffix {suffix!r}.") from error
    if not done:
        raise InputError(f"Cannot write {path}: encoding as {suffix!r} failed.")
    write_bytes(path, data.tobytes())


def write_label(
    path: StrPath, labels: np.ndarray, colors: Sequence[Sequence[int]] | None = None
) -> None:
    """Write a label map atomically as an 8-bit PNG: with a palette if `colors`, else gray.

    Args:
        labels: integer array (H, W), values 0..255.
        colors: (r, g, b) of label 0, 1, ...; at most 256. Other labels are shown black.

    Raises:
        InputError: wrong shape, dtype or values, or too many colours.
        InputFileError: the file cannot be written.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise InputError(
            f"Cannot write {path}: expected integer labels (H, W), got "
            f"{labels.dtype} {labels.shape}."
        )
    if labels.size and (labels.min() < 0 or labels.max() > 255):
        raise InputError(
            f"Cannot write {path}: labels must be in 0..255, got {labels.min()}..{labels.max()}."
        )
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    if colors is not None:
        palette = [int(value) for color in colors for value in color]
        if len(palette) > 768:
            raise InputError(f"Cannot write {path}: {len(palette) // 3} colours, at most 256 fit.")
        # A full palette keeps PIL from packing the ids into fewer than 8 bits.
        palette += [0] * (768 - len(palette))
        image.putpalette(palette)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())
