"""Frames from a folder, an image, a video file, a camera or a pipe; and a video writer."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import cv2
import numpy as np

from vss2.data.frame_sources import FrameSource, ImageSource, VideoSource
from vss2.data.live_sources import CAMERA_PREFIX, STDIN, CameraSource, StreamSource
from vss2.errors import InputError, InputFileError

__all__ = ["FrameSource", "VideoWriter", "open_source"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def open_source(
    path: str | Path,
    *,
    raw_size: tuple[int, int] | None = None,
    stream: BinaryIO | None = None,
    open_capture: Callable[[int], Any] | None = None,
) -> FrameSource:
    """Open a folder of images (sorted by name, hidden files left out), a file, camera or pipe.

    Args:
        path: a folder with .jpg, .jpeg, .png, .bmp or .webp files, one such file, a video file
            in any format that FFmpeg reads, "camera:0", or "-" for standard input.
        raw_size: (height, width) of raw RGB frames on standard input; see `StreamSource`.
        stream: binary, read instead of standard input.
        open_capture: opens a camera instead of `cv2.VideoCapture`.

    Raises:
        InputFileError: the path is missing, or the folder has no images.
        InputError: two images of the folder share a name, the file is not a video, there is no
            such camera, or `raw_size` is given for something else than a pipe.
    """
    if str(path) == STDIN:
        return StreamSource(raw_size, stream)
    if raw_size is not None:
        raise InputError(f"Raw frames are read from standard input ('-') only, not from {path}.")
    if str(path).startswith(CAMERA_PREFIX):
        return CameraSource(str(path), open_capture)
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise InputFileError(f"{path} does not exist: expected a folder of images or a video file.")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource(path, [path], kind="file")
    return VideoSource(path)


def _open_folder(path: Path) -> FrameSource:
    def images(folder: Path) -> list[Path]:
        return sorted(
            (
                file
                for file in folder.iterdir()
                if file.suffix.lower() in IMAGE_SUFFIXES
                and not file.name.startswith(".")
                and file.is_file()
            ),
            key=lambda file: file.name,
        )

    files = images(path)
    if not files:
        inner = [f"'{sub}'" for sub in sorted(path.iterdir()) if sub.is_dir() and images(sub)]
        hint = f" Did you mean {', '.join(inner[:3])}?" if inner else ""
        raise InputFileError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)}).{hint}")
    seen: dict[str, Path] = {}
    for file in files:
        other = seen.setdefault(file.stem, file)
        if other is not file:
            raise InputError(
                f"{path} holds both {other.name} and {file.name}: expected one image a frame."
            )
    return ImageSource(path, files, kind="folder")


class VideoWriter:
    """Writes an H.264 (yuv420p) video that plays everywhere; use it as a context manager.

    Frames go to a temporary name beside `path`, which is renamed when the block ends well and
    removed when it does not. Odd sizes are padded by repeating the last row or column.

    Args:
        path: file to write; its suffix chooses the container (.mp4, .mkv, .mov).
        fps: frames a second.

    Raises:
        InputError: fps is not positive, the container is unknown, the folder cannot be written, a
            frame is not uint8 RGB (H, W, 3) or of another size than the first, or none was written.
    """

    def __init__(self, path: str | Path, fps: float = 15.0):
        self.path = Path(path)
        if not fps > 0:
            raise InputError(f"fps must be positive, got {fps}.")
        self.fps = Fraction(fps).limit_denominator(1001)
        self.num_frames = 0
        self._size: tuple[int, int] | None = None
        self._stream: Any = None
        self._partial = self.path.with_name(
            f".{self.path.stem}.partial-{os.getpid()}{self.path.suffix}"
        )

    def __enter__(self) -> VideoWriter:
        if not self.path.parent.is_dir():
            raise InputFileError(
                f"Cannot write the video {self.path}: {self.path.parent} is no folder."
            )
        try:
            self._container = av.open(str(self._partial), mode="w")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise self._failure(error) from error
        return self

    def _failure(self, error: Exception) -> InputError:
        reason = getattr(error, "strerror", None) or error
        return InputError(f"Cannot write the video {self.path}: {reason}.")

    def _start(self, height: int, width: int) -> None:
        """Add the stream, once the frames' size is known."""
        self._size = (height, width)
        self._stream = self._container.add_stream("libx264", rate=self.fps)
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        # With macroblock trees x264 writes other bytes now and then, most often for small frames.
        self._stream.options = {"crf": "18", "preset": "veryfast", "mbtree": "0"}

    def _encode(self, picture: av.VideoFrame | None) -> None:
        """Encode and write what is ready; None flushes the encoder."""
        try:
            for packet in self._stream.encode(picture):
                self._container.mux(packet)
        except (av.FFmpegError, OSError) as error:
            raise self._failure(error) from error

    def write(self, frame: np.ndarray) -> None:
        """Add a frame, uint8 RGB (H, W, 3)."""
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise InputError(
                f"{self.path}: a frame must be uint8 (H, W, 3), got {frame.dtype} {frame.shape}."
            )
        height, width = frame.shape[:2]
        if self._stream is None:
            self._start(height, width)
        if self._size is not None and (height, width) != self._size:
            raise InputError(
                f"{self.path}: frame {self.num_frames} is {height}x{width}, the first one is "
                f"{self._size[0]}x{self._size[1]} (height x width)."
            )
        if height % 2 or width % 2:
            frame = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        self._encode(picture)
        self.num_frames += 1

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None and self._stream is not None:
                self._encode(None)
            self._container.close()
            if kind is None and self._stream is not None:
                os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)
        if kind is None and self._stream is None:
            raise InputError(f"No frame was given for the video {self.path}.")
