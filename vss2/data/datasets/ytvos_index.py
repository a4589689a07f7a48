"""The frame list `ytvos.csv` of YouTube-VOS at full rate: how many frames each video has.

No header; the columns are video, number of the first frame, number of frames. The frames are
`<video>/%05d.jpg` with consecutive numbers. SFC (ECCV 2022) trains by this list.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from vss2.data.datasets.frame_files import sorted_files, sorted_folders
from vss2.data.image_io import StrPath, write_bytes
from vss2.errors import InputError, InputFileError


class FrameRange(NamedTuple):
    """The frames of one video, numbered first, first + 1, ..., first + num_frames - 1."""

    video: str
    first: int
    num_frames: int

    def file_name(self, position: int) -> str:
        """Path of a frame below the folder of the videos, such as `003234408d/00000.jpg`."""
        return f"{self.video}/{self.first + position:05d}.jpg"


def build_ytvos_index(
    folder: StrPath, progress: Callable[[int], object] | None = None
) -> list[FrameRange]:
    """The frame list of a folder of videos, sorted by name.

    Args:
        folder: holds `<video>/%05d.jpg`, such as `train_all_frames/JPEGImages`.
        progress: called with 1 after each video.

    Raises:
        InputFileError: the folder is missing or holds no videos.
        InputError: a video has no frames, or their numbers have gaps.
    """
    folder = Path(folder)
    rows = []
    for video in sorted_folders(folder, "Expected <video>/<number>.jpg in it."):
        names = sorted_files(folder / video, (".jpg",))
        rows.append(_frame_range(folder / video, video, names))
        if progress is not None:
            progress(1)
    return rows


def _frame_range(folder: Path, video: str, names: list[str]) -> FrameRange:
    if not names:
        raise InputError(f"The video {video!r} is empty: {folder} holds no frames (*.jpg).")
    for name in names:
        if not (len(name) == 9 and name[:5].isdigit()):
            raise InputError(
                f"The frame {folder / name} is not named by five digits, as 00000.jpg."
            )
    first, last = int(names[0][:5]), int(names[-1][:5])
    if last - first + 1 != len(names):
        numbers = {int(name[:5]) for name in names}
        gap = next(n for n in range(first, last + 1) if n not in numbers)
        raise InputError(
            f"The frames of video {video!r} are not numbered without gaps: {folder} lacks "
            f"{gap:05d}.jpg. The frame list is for the full-rate frames (train_all_frames)."
        )
    return FrameRange(video, first, len(names))


def write_ytvos_index(path: StrPath, rows: Iterable[FrameRange]) -> None:
    """Write the frame list as csv, atomically.

    Raises:
        InputFileError: the file cannot be written.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_bytes(path, text.getvalue().encode())


def read_ytvos_index(path: StrPath) -> list[FrameRange]:
    """The rows of a frame list, in their order; no frame is looked at.

    Raises:
        InputFileError: the file is missing or cannot be read.
        InputError: a row is not (video, first frame, number of frames), or there is none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(
            f"Cannot read the frame list {path}: {error}. "
            "`vss2 data ytvos-index` makes it from the folders."
        ) from error
    rows = []
    for number, row in enumerate(csv.reader(io.StringIO(text)), start=1):
        if not row:
            continue
        if len(row) != 3 or not (row[1].strip().isdigit() and row[2].strip().isdigit()):
            raise InputError(
                f"Line {number} of the frame list {path} is {','.join(row)!r}; expected video, "
                "number of the first frame, number of frames."
            )
        rows.append(FrameRange(row[0].strip(), int(row[1]), int(row[2])))
    if not rows:
        raise InputError(f"The frame list {path} is empty.")
    return rows
