"""What the video data sets on disk share: lists of videos, and frames as files of a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

from vss2.data.problems import problem
from vss2.errors import InputError, InputFileError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def sorted_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Visible file names of a folder that end with one of the suffixes, sorted.

    Raises:
        InputFileError: the folder cannot be listed.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise InputFileError(f"Cannot list the folder {folder}: {error.strerror}.") from error
    return sorted(n for n in names if n.lower().endswith(suffixes) and not n.startswith("."))


def sorted_folders(folder: Path, hint: str) -> list[str]:
    """Names of the visible folders in `folder`, sorted.

    Args:
        hint: the expected layout, a sentence for the error.

    Raises:
        InputFileError: `folder` does not exist or holds no folders.
    """
    if not folder.is_dir():
        raise InputFileError(f"The folder {folder} does not exist. {hint}")
    names = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise InputFileError(f"The folder {folder} holds no videos. {hint}")
    return names


def read_video_list(path: Path, hint: str) -> list[str]:
    """The names in a list file, one per line, each once.

    Args:
        hint: the expected layout, a sentence for the error.

    Raises:
        InputFileError: the file does not exist or cannot be read.
        InputError: it names nothing, or a video twice.
    """
    if not path.is_file():
        raise InputFileError(f"The list of videos {path} does not exist. {hint}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"Cannot read the list of videos {path}: {error}.") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"The list of videos {path} names no video.")
    times = Counter(names)
    for name in times:
        if times[name] > 1:
            problem(InputError(f"The list of videos {path} names {name!r} twice."))
    return list(times)


def check_masks(frames: Iterable[str], masks: Iterable[str], folder: Path, video: str) -> None:
    """Every frame needs the mask `<stem>.png`.

    Args:
        frames, masks: file names.
        folder: of the masks, for the message.

    Raises:
        InputFileError: names the first mask that is missing.
    """
    there = {Path(name).stem for name in masks}
    missing = [name for name in frames if Path(name).stem not in there]
    if missing:
        raise InputFileError(
            f"The video {video!r} lacks {len(missing)} masks: {folder / Path(missing[0]).stem}.png "
            "is missing."
        )


class FrameFiles(Sequence[dict[str, Any]]):
    """Frame dicts of one video, made when they are asked for.

    Only folders and file names are kept: BL30K has 4.8 million frames.

    Args:
        folder: of the frames.
        names: their file names, in order.
        label_folder: holds `<stem>.png` for each; None: there are no masks.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], label_folder: Path | None = None
    ) -> None:
        self.folder = str(folder)
        self.label_folder = None if label_folder is None else str(label_folder)
        self._names = "\n".join(names)  # one string pickles in a third of the bytes of many
        self._count = len(names)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        names = self._names.split("\n")
        if isinstance(index, slice):
            return [self._frame(i, names[i]) for i in range(*index.indices(self._count))]
        position = range(self._count)[index]
        return self._frame(position, names[position])

    def _frame(self, position: int, name: str) -> dict[str, Any]:
        folder, stem = self.label_folder, os.path.splitext(name)[0]
        return {
            "file_name": os.path.join(self.folder, name),
            "label_file": None if folder is None else os.path.join(folder, f"{stem}.png"),
            "frame_index": position,
        }
