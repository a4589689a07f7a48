"""Masks that a user gives for frames of a video: of the first one, and of any later one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vss2.data.first_frame import MAX_OBJECTS, read_object_mask
from vss2.data.frame_sources import FrameSource
from vss2.data.image_io import read_label
from vss2.errors import InputError, InputFileError

VOID = 255


class GivenMasks:
    """Palette or grey PNGs of object ids, 0 where nothing is said.

    255 is void where masks hold other ids too, else an object like any other. All masks are
    checked when the first frame comes.

    Args:
        paths: a PNG is the mask of the first frame; a folder holds `<frame's name>.png` of any
            frames.
        start: index of the first frame that is looked at.
        max_objects: how many ids one mask is believed to hold.
        resize: masks of another size than the frames are resized by the nearest pixel; else they
            are an error.

    Raises:
        InputFileError: a path does not exist, or a folder holds no PNG.
        InputError: two masks are for one frame.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        start: int = 0,
        max_objects: int = MAX_OBJECTS,
        resize: bool = False,
    ):
        self._start, self._max_objects, self._resize = start, max_objects, resize
        self._first: Path | None = None
        self._named: dict[str, Path] = {}
        for path in map(Path, paths):
            if not path.exists():
                raise InputFileError(f"The mask {path} does not exist: expected a PNG or a folder.")
            if path.is_dir():
                self._take_folder(path)
            elif self._first is not None:
                raise InputError(
                    f"{self._first} and {path} are both masks of the first frame: masks of later "
                    f"frames lie in a folder, each called as its frame."
                )
            else:
                self._first = path
        self._size: tuple[int, int] | None = None
        self._has_void = False
        self._waiting = set(self._named)

    def _take_folder(self, folder: Path) -> None:
        files = sorted(p for p in folder.glob("*.png") if not p.name.startswith("."))
        if not files:
            raise InputFileError(f"The folder of masks {folder} holds no *.png.")
        for file in files:
            other = self._named.setdefault(file.stem, file)
            if other is not file:
                raise InputError(f"{other} and {file} are both masks of frame {file.stem}.")

    @property
    def files(self) -> list[Path]:
        """All masks, that of the first frame first."""
        first = [] if self._first is None else [self._first]
        return [*first, *(self._named[name] for name in sorted(self._named))]

    @property
    def unused(self) -> list[Path]:
        """Masks of which no frame has come."""
        return [self._named[name] for name in sorted(self._waiting)]

    def check_names(self, source: FrameSource, end: int | None = None) -> None:
        """Compare the masks' names with those of the source's frames.

        Raises:
            InputError: a mask belongs to no frame, none to one before `end`, or two to the first.
        """
        known = _frame_indices(source)
        indices = {name: known(name) for name in self._named}
        names = [repr(name) for name in (source.name(0), source.name(1)) if name is not None]
        for name, index in indices.items():
            if index is None:
                raise InputError(
                    f"The mask {self._named[name]} belongs to no frame of {source.path}: its "
                    f"frames are called {', '.join(names)}, …"
                )
        if self._first is not None:
            if source.name(self._start) in self._named:
                raise InputError(
                    f"{self._first} and {self._named[str(source.name(self._start))]} are both "
                    f"masks of the first frame."
                )
            return
        last = float("inf") if end is None else end
        if not any(index is not None and self._start <= index < last for index in indices.values()):
            raise InputError(
                f"No mask belongs to the frames that are looked at: from {self._start} on"
                f"{'' if end is None else f' to {end}'} of {source.path}."
            )

    def identity(self) -> dict[str, Any]:
        """What tells these masks from others: a digest, not their place on disk."""
        digest = hashlib.sha256()
        for name, file in [("", self._first), *sorted(self._named.items())]:
            if file is not None:
                digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        return {"digest": digest.hexdigest(), "count": len(self.files), "resize": self._resize}

    def __call__(self, index: int, name: str, size: tuple[int, int]) -> np.ndarray | None:
        """The mask that is given for a frame, uint8 (H, W); None where there is none.

        Args:
            index, name, size: of the frame; size is (height, width).

        Raises:
            InputFileError: a mask cannot be read.
            InputError: at the first frame, that any of the masks does not fit (see
                `vss2.data.first_frame`), or that they hold no object.
        """
        if self._size is None:
            self._check_all(size)
            self._size = size
        self._waiting.discard(name)
        file = self._first if index == self._start and self._first else self._named.get(name)
        if file is None:
            return None
        mask = self._read(file, size)
        return np.where(mask == VOID, np.uint8(0), mask) if self._has_void else mask

    def _check_all(self, size: tuple[int, int]) -> None:
        ids: set[int] = set()
        for file in self.files:
            mask = read_object_mask(file, None, self._max_objects)
            if mask.shape != size and not self._resize:
                raise InputError(
                    f"The mask {file} is {mask.shape[0]}x{mask.shape[1]}, its frame "
                    f"{size[0]}x{size[1]} (height x width): make the mask for this frame, or let "
                    f"it be resized by the nearest pixel (--resize-masks)."
                )
            ids.update(np.unique(mask).tolist())
        ids.discard(0)
        if not ids:
            raise InputError(f"The mask {self.files[0]} holds no object: all of its pixels are 0.")
        self._has_void = ids != {VOID}

    def _read(self, file: Path, size: tuple[int, int]) -> np.ndarray:
        mask = read_label(file)
        if mask.shape == size:
            return mask
        return cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _frame_indices(source: FrameSource) -> Callable[[str], int | None]:
    """From a frame's name to its index in the source."""
    if source.kind == "folder" and source.num_frames is not None:
        return {str(source.name(i)): i for i in range(source.num_frames)}.get

    def numbered(name: str) -> int | None:
        index = int(name) if name.isdecimal() else 0
        return index if source.name(index) == name else None

    return numbered
