"""Look into the files of one video; runs in worker processes."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import cv2
from PIL import Image

from vss2.data.doctor.findings import Finding
from vss2.data.doctor.listing import ListedFrame
from vss2.data.image_io import is_whole, read_image, read_label
from vss2.data.stray_labels import find_stray_labels
from vss2.errors import InputError, InputFileError


class FrameTask(NamedTuple):
    """Some consecutive frames of one video."""

    video: int
    video_id: str
    frames: list[ListedFrame]
    num_classes: int
    label_mapping: str


class FrameFacts(NamedTuple):
    """What was seen in the frames of a task.

    Attributes:
        video: as in the task.
        findings: faults of single files.
        sizes: (height, width) of each image, None where it could not be read.
        digests: of the bytes of each image that could be read.
        masks: how many label maps were opened.
    """

    video: int
    findings: list[Finding]
    sizes: list[tuple[int, int] | None]
    digests: list[bytes]
    masks: int


def start_worker() -> None:
    """Set up a worker process: one thread, and Ctrl-C is the parent's business."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)


def examine(task: FrameTask) -> FrameFacts:
    """Open and decode every file of a task."""
    facts = FrameFacts(task.video, [], [], [], 0)
    masks = 0
    for frame in task.frames:
        size = _examine_image(task, frame.image, facts)
        facts.sizes.append(size)
        if frame.label is not None:
            masks += 1
            _examine_label(task, frame, size, facts.findings)
    return facts._replace(masks=masks)


def _bytes_fault(path: str, noun: str) -> tuple[str, str, bytes]:
    """(kind suffix, message, bytes): what the bytes of a file say before it is decoded."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return "unreadable", f"Cannot read the {noun} {path}: {reason}.", b""
    if not data:
        return "empty", f"The {noun} {path} is empty (0 bytes).", data
    if not is_whole(data):
        message = f"The {noun} {path} is cut off: its end is missing ({len(data)} bytes are there)."
        return "truncated", message, data
    return "", "", data


def _examine_image(task: FrameTask, path: str, facts: FrameFacts) -> tuple[int, int] | None:
    """Size of an image that can be read; its faults and digest go into `facts`."""
    fault, message, data = _bytes_fault(path, "image")
    if not fault:
        try:
            height, width = read_image(path).shape[:2]
        except InputError as error:
            fault, message = "unreadable", str(error)
    if fault:
        facts.findings.append(Finding(f"image_{fault}", message, task.video_id, path))
        return None
    facts.digests.append(hashlib.blake2b(data, digest_size=16).digest())
    return height, width


def _examine_label(
    task: FrameTask, frame: ListedFrame, size: tuple[int, int] | None, findings: list[Finding]
) -> None:
    path = str(frame.label)

    def found(kind: str, message: str) -> None:
        findings.append(Finding(kind, message, task.video_id, path))

    fault, message, data = _bytes_fault(path, "label map")
    if fault:
        return found(f"label_{fault}", message)
    try:
        label = read_label(path)
    except InputFileError as error:
        return found("label_unreadable", str(error))
    except InputError as error:  # decoded, but not one channel of 8 bits
        with Image.open(io.BytesIO(data)) as image:
            colour = len(image.getbands()) >= 3
        return found("label_colour_mask" if colour else "label_format", str(error))
    if size is not None and label.shape != size:
        found(
            "size_mismatch",
            f"The label map {path} is {label.shape[0]}x{label.shape[1]}, its frame {frame.image} "
            f"is {size[0]}x{size[1]}.",
        )
    stray = find_stray_labels(label, task.num_classes, task.label_mapping, path)
    if stray is not None:
        found(f"label_{stray.cause}", f"The label map {path} is wrong: {stray.message}.")
    return None
