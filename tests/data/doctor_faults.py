"""Seeded faults: each function spoils a clean set in VSPW's layout in one way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from vss2.data.image_io import read_image, read_label, write_image, write_label


class Fault(NamedTuple):
    """A seeded fault.

    Attributes:
        apply: spoils the set below `root`, given a generator.
        kind: what the doctor must call it.
        names: text that some finding of that kind must contain.
        also: kinds that follow from it.
    """

    apply: Callable[[Path, np.random.Generator], None]
    kind: str
    names: str
    also: frozenset[str] = frozenset()


VIDEO = "v1"


def files(root: Path, part: str, video: str = VIDEO) -> list[Path]:
    return sorted((root / "data" / video / part).iterdir())


def some(root: Path, part: str, rng: np.random.Generator) -> Path:
    found = files(root, part)
    return found[int(rng.integers(len(found)))]


def empty_image(root: Path, rng: np.random.Generator) -> None:
    some(root, "origin", rng).write_bytes(b"")


def truncated_image(root: Path, rng: np.random.Generator) -> None:
    path = some(root, "origin", rng)
    path.write_bytes(path.read_bytes()[: int(rng.integers(40, 200))])


def garbage_image(root: Path, rng: np.random.Generator) -> None:
    some(root, "origin", rng).write_bytes(rng.bytes(500))


def truncated_label(root: Path, rng: np.random.Generator) -> None:
    path = some(root, "mask", rng)
    path.write_bytes(path.read_bytes()[:-30])


def missing_label(root: Path, rng: np.random.Generator) -> None:
    some(root, "mask", rng).unlink()


def extra_label(root: Path, rng: np.random.Generator) -> None:
    shutil.copy(some(root, "mask", rng), root / "data" / VIDEO / "mask" / "99999999.png")


def other_size(root: Path, rng: np.random.Generator) -> None:
    path = some(root, "mask", rng)
    write_label(path, read_label(path)[:-2])


def colour_mask(root: Path, rng: np.random.Generator) -> None:
    path = some(root, "mask", rng)
    colours = rng.integers(0, 256, (256, 3)).astype(np.uint8)
    write_image(path, colours[read_label(path)])


def off_by_one(root: Path, rng: np.random.Generator) -> None:
    for path in files(root, "mask"):
        label = read_label(path).astype(int)
        write_label(path, np.where(label == 255, 255, label + 1))


def anti_aliased(root: Path, rng: np.random.Generator) -> None:
    path = some(root, "mask", rng)
    label = read_label(path)
    small = cv2.resize(label, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_LINEAR)
    smooth = cv2.resize(small, label.shape[::-1], interpolation=cv2.INTER_LINEAR)
    image = Image.fromarray(smooth)
    image.putpalette([0] * 768)
    image.save(path)


def empty_video(root: Path, rng: np.random.Generator) -> None:
    for part in ("origin", "mask"):
        for path in files(root, part):
            path.unlink()


def one_frame(root: Path, rng: np.random.Generator) -> None:
    for part in ("origin", "mask"):
        for path in files(root, part)[1:]:
            path.unlink()


def unknown_entry(root: Path, rng: np.random.Generator) -> None:
    with (root / "train.txt").open("a") as file:
        file.write("\nv1x\n")


def twice_listed(root: Path, rng: np.random.Generator) -> None:
    with (root / "train.txt").open("a") as file:
        file.write(f"\n{VIDEO}\n")


def wrong_order(root: Path, rng: np.random.Generator) -> None:
    for part in ("origin", "mask"):
        for number, path in enumerate(files(root, part), start=8):
            path.rename(path.with_name(f"frame{number}{path.suffix}"))


def duplicate_video(root: Path, rng: np.random.Generator) -> None:
    shutil.copytree(root / "data" / VIDEO, root / "data" / "copy")
    with (root / "val.txt").open("a") as file:
        file.write("\ncopy\n")


def other_frame_size(root: Path, rng: np.random.Generator) -> None:
    for part, read, write in (
        ("origin", read_image, write_image),
        ("mask", read_label, write_label),
    ):
        path = files(root, part)[2]
        write(path, read(path)[:-2])


def in_two_splits(root: Path, rng: np.random.Generator) -> None:
    with (root / "val.txt").open("a") as file:
        file.write(f"\n{VIDEO}\n")


def deep_mask(root: Path, rng: np.random.Generator) -> None:
    path = some(root, "mask", rng)
    Image.fromarray(read_label(path).astype(np.uint16)).save(path)


def other_ids(root: Path, rng: np.random.Generator) -> None:
    path = some(root, "mask", rng)
    label = read_label(path)
    label[2:14, 2:20] = 200
    write_label(path, label)


FAULTS: dict[str, Fault] = {
    "empty image": Fault(empty_image, "image_empty", "0 bytes"),
    "truncated image": Fault(truncated_image, "image_truncated", "cut off"),
    "unreadable image": Fault(garbage_image, "image_unreadable", "Cannot decode the image"),
    "truncated label": Fault(truncated_label, "label_truncated", "cut off"),
    "missing label": Fault(missing_label, "label_missing", "has no label map"),
    "extra label": Fault(extra_label, "label_extra", "99999999.png"),
    "size mismatch": Fault(other_size, "size_mismatch", "46x72"),
    "colour mask": Fault(colour_mask, "label_colour_mask", "colour image"),
    "off by one": Fault(off_by_one, "label_off_by_one", "one too high"),
    "anti-aliased palette": Fault(anti_aliased, "label_anti_aliased", "interpolation"),
    "empty video": Fault(empty_video, "video_empty", "'v1' has no frames"),
    "one-frame video": Fault(one_frame, "video_one_frame", "'v1' has a single frame"),
    "wrong list entry": Fault(unknown_entry, "list_unknown", "Did you mean 'v1'"),
    "duplicate list entry": Fault(twice_listed, "list_duplicate", "lists 'v1' twice"),
    "wrong order": Fault(wrong_order, "frame_order", "out of order"),
    "duplicate video": Fault(duplicate_video, "video_duplicate", "'v1' and 'copy'"),
    "frame of another size": Fault(other_frame_size, "size_mismatch", "'v1' differ in size"),
    "video in two splits": Fault(in_two_splits, "list_duplicate", "is in both"),
    "16-bit mask": Fault(deep_mask, "label_format", "8-bit"),
    "other ids": Fault(other_ids, "label_out_of_range", "200"),
}
