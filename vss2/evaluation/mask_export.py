"""Masks as files in the form that the benchmarks' servers take: palette PNGs and a zip of them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vss2.d2.utils import comm
from vss2.data.image_io import write_label
from vss2.data.vos_palette import DAVIS_PALETTE
from vss2.errors import InputError, InputFileError

SUBMISSION = "submission.zip"


class MaskExport:
    """Writes masks as `<folder>/<top>/<video>/<frame's name>.png`, one at a time, and zips them.

    Args:
        folder: of the zip and of what is in it.
        top: folder in the zip that holds the videos; "" puts them at its root.
        binary: write 8-bit grey PNGs of 0 and 255 (DAVIS 2016) instead of palette PNGs of ids.
    """

    def __init__(self, folder: Path, top: str, binary: bool = False):
        self.folder = folder
        self._top = PurePosixPath(top)
        self._binary = binary
        self._written: dict[str, list[str]] = {}

    def write(self, answer: Mapping[str, Any], mask: np.ndarray) -> None:
        """Write the mask (H, W) of a model's answer, under the name of its frame.

        Raises:
            InputError: an id above 255.
            InputFileError: the file cannot be written.
        """
        video, name = str(answer["video_id"]), f"{Path(answer['file_name']).stem}.png"
        if self._binary:
            mask, colors = (mask != 0).astype(np.uint8) * 255, None
        else:
            colors = DAVIS_PALETTE
        write_label(self.folder / self._top / video / name, mask, colors)
        self._written.setdefault(video, []).append(name)

    def pack(self) -> Path | None:
        """Zip what all ranks wrote; every rank must call it once all are done.

        Returns:
            On rank 0 the file, None elsewhere. Whatever else lies in the folders stays out.

        Raises:
            InputFileError: the zip cannot be written, or a rank's mask is not in this folder.
        """
        gathered = comm.gather(self._written)
        if not comm.is_main_process():
            return None
        members = [
            self._top / video / name
            for written in gathered
            for video, names in written.items()
            for name in names
        ]
        return _zip(self.folder, sorted(members))


def _zip(folder: Path, members: list[PurePosixPath]) -> Path:
    """Write `folder/submission.zip` atomically; PNGs are compressed already and stored as such."""
    target = folder / SUBMISSION
    temporary = folder / f".{SUBMISSION}.{os.getpid()}.tmp"
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
                for member in members:
                    # Without the file's time, equal masks make an equal zip.
                    archive.writestr(zipfile.ZipInfo(str(member)), (folder / member).read_bytes())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputFileError(f"Cannot write {target}: {reason} ({error.filename}).") from error
    return target


def answer_mask(answer: Mapping[str, Any]) -> np.ndarray:
    """The mask (H, W) of a model's answer, ids of an integer type, on the host.

    Raises:
        InputError: the answer has no mask.
    """
    mask = answer.get("mask")
    if mask is None:
        raise InputError(
            f"The answer to frame {answer['frame_index']} of video '{answer['video_id']}' has no "
            f"'mask': this evaluator is for models that propagate masks."
        )
    return mask.cpu().numpy() if hasattr(mask, "cpu") else np.asarray(mask)
