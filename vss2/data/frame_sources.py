"""Frames from image files and video files, one in memory at a time."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from vss2.data.image_io import read_image
from vss2.errors import InputError, InputFileError

logger = logging.getLogger(__name__)

# demuxers that take any text or bytes for a video
_NO_VIDEO_FORMATS = {"tty", "rawvideo", "data", "ffmetadata"}
_SAMPLE = 1 << 14  # bytes read of a file at each of three places to recognise it


class FrameSource(ABC):
    """An iterable of `(name, frame)`: the frame's name without suffix, uint8 RGB (H, W, 3).

    Attributes:
        path: what was opened.
        kind: "folder", "file", "camera" or "stream".
        live: whether the frames come but once, so that no second iteration is possible and an
            interruption is the natural end.
        fps: frames a second, None where the source does not say.
        num_frames: number of frames, None where it is not known before the end.
    """

    path: Path | str
    kind: str
    live: bool = False
    fps: float | None = None
    num_frames: int | None = None

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield all frames in order; a source that is not live starts anew each time."""
        for _, name, frame in self.frames():
            yield name, frame

    @abstractmethod
    def frames(
        self, start: int = 0, end: int | None = None, step: int = 1
    ) -> Iterator[tuple[int, str, np.ndarray]]:
        """Yield `(index, name, frame)` for the indices of range(start, end, step), in order."""

    def name(self, index: int) -> str | None:
        """Name of frame `index`, None where it is known that there is no such frame."""
        return None if self.num_frames is not None and index >= self.num_frames else f"{index:06d}"

    def identity(self) -> dict[str, Any]:
        """What tells this input from another one: numbers and a digest, not its place on disk."""
        return {"kind": self.kind}


class ImageSource(FrameSource):
    """The given image files in the given order; names are the files' stems."""

    def __init__(self, path: Path, files: Sequence[Path], kind: str):
        self.path, self.files, self.kind = path, list(files), kind
        self.num_frames = len(self.files)

    def frames(
        self, start: int = 0, end: int | None = None, step: int = 1
    ) -> Iterator[tuple[int, str, np.ndarray]]:
        for index in range(*slice(start, end, step).indices(len(self.files))):
            yield index, self.files[index].stem, read_image(self.files[index])

    def name(self, index: int) -> str | None:
        return self.files[index].stem if index < len(self.files) else None

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.name.encode() + b"\0" + _sample(file))
        return {"kind": self.kind, "frames": len(self.files), "digest": digest.hexdigest()}


class VideoSource(FrameSource):
    """A video file's first video stream, decoded as it is read; names are "000000", "000001", …

    Frames come as stored: rotation metadata is not applied.

    Raises:
        InputError: not a video; while iterating, a frame that cannot be decoded.
    """

    kind = "file"
    path: Path

    def __init__(self, path: Path):
        self.path = path
        with self._open() as container:
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            self.fps = float(rate) if rate else None
            self.num_frames = stream.frames or None

    def _open(self):
        try:
            container = av.open(str(self.path))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise InputError(
                f"{self.path} cannot be read as a video: {getattr(error, 'strerror', error)}."
            ) from error
        if not container.streams.video or container.format.name in _NO_VIDEO_FORMATS:
            container.close()
            raise InputError(f"{self.path} is not a video: it has no video stream.")
        return container

    def frames(
        self, start: int = 0, end: int | None = None, step: int = 1
    ) -> Iterator[tuple[int, str, np.ndarray]]:
        # A seek lands on another frame in some files: all are decoded, those wanted converted.
        index = 0
        with self._open() as container:
            # The default, threads within a frame, stays: with threads over frames FFmpeg takes a
            # frame that it cannot decode for the end of the video and says nothing.
            decoded = container.decode(video=0)
            while end is None or index < end:
                wanted = index >= start and (index - start) % step == 0
                try:
                    frame = next(decoded, None)
                    image = frame.to_ndarray(format="rgb24") if frame and wanted else None
                except (av.FFmpegError, ValueError) as error:
                    raise InputError(
                        f"{self.path}: frame {index} is corrupt and cannot be decoded "
                        f"({getattr(error, 'strerror', error)})."
                    ) from error
                if frame is None:
                    break
                if frame.is_corrupt:
                    logger.warning("%s: frame %d is damaged, FFmpeg patched it", self.path, index)
                if image is not None:
                    yield index, f"{index:06d}", np.ascontiguousarray(image)
                index += 1
        if index == 0 and end != 0:
            raise InputError(f"{self.path} holds no frame.")
        if end is None and self.num_frames and index < self.num_frames:
            logger.warning("%s ends after %d of %d frames", self.path, index, self.num_frames)

    def name(self, index: int) -> str | None:
        return f"{index:06d}"  # the container's count of frames is a hint, no promise

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, "digest": hashlib.sha256(_sample(self.path)).hexdigest()}


def _sample(file: Path) -> bytes:
    """Size of a file and what stands at its beginning, middle and end."""
    try:
        with file.open("rb") as f:
            size = file.stat().st_size
            parts = [size.to_bytes(8, "little")]
            for place in sorted({0, max(size // 2 - _SAMPLE // 2, 0), max(size - _SAMPLE, 0)}):
                f.seek(place)
                parts.append(f.read(_SAMPLE))
    except OSError as error:
        raise InputFileError(f"Cannot read the file {file}: {error.strerror}.") from error
    return b"".join(parts)
