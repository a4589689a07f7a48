"""Frames that come but once: from a camera, or through a pipe."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import cv2
import numpy as np

from vss2.data.frame_sources import FrameSource
from vss2.errors import InputError

CAMERA_PREFIX = "camera:"
STDIN = "-"
_CHUNK = 1 << 16
_MAX_IMAGE = 1 << 28  # bytes; a picture that has not ended by then is none
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"


class LiveSource(FrameSource):
    """A source whose frames come but once; names are "000000", "000001", …"""

    live = True

    def frames(
        self, start: int = 0, end: int | None = None, step: int = 1
    ) -> Iterator[tuple[int, str, np.ndarray]]:
        if end is not None and end <= start:
            return
        for index, frame in enumerate(self._read()):
            if index >= start and (index - start) % step == 0:
                yield index, f"{index:06d}", frame
            if end is not None and index + 1 >= end:
                return  # before the next frame, which may never come

    def _read(self) -> Iterator[np.ndarray]:
        """Yield every frame, uint8 RGB (H, W, 3)."""
        raise NotImplementedError


class CameraSource(LiveSource):
    """A camera through OpenCV; it ends when the camera does, or when the reader stops.

    Args:
        spec: "camera:0", the number as OpenCV counts the machine's cameras.
        open_capture: opens camera `number`; default `cv2.VideoCapture`.

    Raises:
        InputError: no such camera; while iterating, a camera that gives no frame.
    """

    kind = "camera"

    def __init__(self, spec: str, open_capture: Callable[[int], Any] | None = None):
        self.path = spec
        number = spec.removeprefix(CAMERA_PREFIX)
        if not number.isdecimal():
            raise InputError(f"{spec!r} names no camera: expected camera:0, camera:1, …")
        self._capture = (open_capture or cv2.VideoCapture)(int(number))
        if not self._capture.isOpened():
            raise InputError(f"{spec} cannot be opened: there is no such camera, or it is in use.")
        rate = float(self._capture.get(cv2.CAP_PROP_FPS) or 0)
        self.fps = rate if 0 < rate < 1000 else None

    def _read(self) -> Iterator[np.ndarray]:
        count = 0
        try:
            while True:
                good, frame = self._capture.read()
                if not good or frame is None:
                    break
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                count += 1
        finally:
            self._capture.release()
        if count == 0:
            raise InputError(f"{self.path} gives no frame.")


class StreamSource(LiveSource):
    """Frames through a pipe: JPEG and PNG files one after the other, or raw RGB.

    Args:
        raw_size: (height, width) of raw frames, height * width * 3 bytes each, rows from the top,
            R, G, B; None: the stream is of image files with nothing between them.
        stream: binary; default the process's standard input.

    Raises:
        InputError: while iterating: neither JPEG nor PNG, a frame that is cut off or cannot be
            decoded, or no frame at all.
    """

    kind = "stream"
    path = "standard input"

    def __init__(
        self, raw_size: tuple[int, int] | None = None, stream: BinaryIO | io.RawIOBase | None = None
    ):
        if raw_size is not None and min(raw_size) < 1:
            raise InputError(f"Raw frames must have a positive size, got {raw_size}.")
        self.raw_size = raw_size
        self._stream = stream
        self._buffer = bytearray()
        self._index = 0

    def _read(self) -> Iterator[np.ndarray]:
        if self._stream is None:
            # Unbuffered: a thread that waits in a buffered read would hold a lock that the
            # interpreter needs in order to end.
            self._stream = io.FileIO(sys.stdin.fileno(), closefd=False)
        take = self._raw if self.raw_size else self._image
        while self._fill(1):
            yield take()
            self._index += 1
        if self._index == 0:
            raise InputError("Standard input holds no frame.")

    def _fill(self, size: int) -> bool:
        """Read until the buffer holds `size` bytes; False where the stream ends before."""
        assert self._stream is not None
        while len(self._buffer) < size:
            data = self._stream.read(max(_CHUNK, size - len(self._buffer)))
            if not data:
                return False
            self._buffer += data
        return True

    def _need(self, size: int) -> None:
        if size > _MAX_IMAGE:
            raise InputError(f"Standard input, frame {self._index}: the image has no end.")
        if not self._fill(size):
            raise InputError(
                f"Standard input, frame {self._index}: the stream ends within the frame, after "
                f"{len(self._buffer)} bytes."
            )

    def _take(self, size: int) -> bytes:
        self._need(size)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _raw(self) -> np.ndarray:
        assert self.raw_size is not None
        height, width = self.raw_size
        data = self._take(height * width * 3)
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)

    def _image(self) -> np.ndarray:
        """The image file at the front of the buffer."""
        self._need(2)
        if self._buffer.startswith(_JPEG):
            size = self._jpeg_size()
        elif self._fill(len(_PNG)) and self._buffer.startswith(_PNG):
            size = self._png_size()
        else:
            raise InputError(
                f"Standard input, frame {self._index}: expected a JPEG or PNG image, found bytes "
                f"{self._buffer[:4].hex(' ')}. Raw frames need their size (--raw HEIGHT WIDTH)."
            )
        data = np.frombuffer(self._take(size), np.uint8)
        try:
            image = cv2.imdecode(data, cv2.IMREAD_COLOR)
        except cv2.error:
            image = None
        if image is None:
            raise InputError(f"Standard input, frame {self._index}: the image is corrupt.")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def _png_size(self) -> int:
        """Bytes up to the end of the IEND chunk: each chunk is length, type, data, checksum."""
        position = len(_PNG)
        while True:
            self._need(position + 8)
            length = int.from_bytes(self._buffer[position : position + 4], "big")
            kind = self._buffer[position + 4 : position + 8]
            position += 12 + length
            self._need(position)
            if kind == b"IEND":
                return position

    def _jpeg_size(self) -> int:
        """Bytes up to the end-of-image marker.

        Segments are passed by their length, since an embedded preview has an end marker of its
        own. In a scan, 0xFF is followed by 0 (a data byte) or a restart marker.
        """
        position = 2
        while True:
            self._need(position + 2)
            marker = self._buffer[position + 1]
            if self._buffer[position] != 0xFF or marker in (0x00, 0xFF):
                position = self._next_marker(position + 1)  # from data of a scan, or a fill byte
            elif marker == 0xD9:
                return position + 2
            elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
                position += 2
            else:
                self._need(position + 4)
                length = int.from_bytes(self._buffer[position + 2 : position + 4], "big")
                position += 2 + max(length, 2)

    def _next_marker(self, position: int) -> int:
        """Place of the next 0xFF at or after `position`."""
        while (found := self._buffer.find(b"\xff", position)) == -1:
            position = len(self._buffer)
            self._need(position + 1)
        return found
