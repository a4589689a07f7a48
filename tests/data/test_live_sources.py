from __future__ import annotations

import io
import subprocess
import sys

import cv2
import numpy as np
import pytest

from vss2.data.image_io import read_image
from vss2.data.video_io import open_source
from vss2.errors import InputError


def _frame(k: int, size=(33, 47)) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, (*size, 3), np.uint8)


def _encoded(suffix: str, frame: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(suffix, frame[..., ::-1], list(options))[1].tobytes()


class Drip(io.RawIOBase):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, data: bytes, most: int):
        self.data, self.most, self.calls = data, most, 0

    def read(self, size=-1):
        self.calls += 1
        size = min(size, 1 + self.calls * 7919 % self.most)
        part, self.data = self.data[:size], self.data[size:]
        return part


class Capture:
    """Looks like cv2.VideoCapture."""

    def __init__(self, count: int, fps: float = 25.0, opened: bool = True):
        self.count, self.fps, self.opened, self.taken = count, fps, opened, 0

    def isOpened(self):
        return self.opened

    def get(self, prop):
        return self.fps if prop == cv2.CAP_PROP_FPS else 0.0

    def read(self):
        if self.taken == self.count:
            return False, None
        self.taken += 1
        return True, _frame(self.taken - 1)[..., ::-1]

    def release(self):
        self.opened = False


@pytest.mark.parametrize("most", [3, 1000, 1 << 20])
def test_images_through_a_pipe(tmp_path, most):
    progressive = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    restarts = (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
    files = [
        _encoded(".jpg", _frame(0)),
        _encoded(".png", _frame(1)),
        _encoded(".jpg", _frame(2), *progressive),
        _encoded(".jpg", _frame(3), *restarts),
        _encoded(".png", _frame(4)),
    ]
    source = open_source("-", stream=Drip(b"".join(files), most))
    assert (source.live, source.kind, source.num_frames) == (True, "stream", None)
    frames = list(source)
    assert [name for name, _ in frames] == [f"{k:06d}" for k in range(5)]
    for (_, frame), data in zip(frames, files, strict=True):
        (tmp_path / "x").write_bytes(data)
        assert np.array_equal(frame, read_image(tmp_path / "x"))


def test_an_embedded_preview_does_not_end_a_jpeg():
    preview = _encoded(".jpg", _frame(9, (8, 8)))
    data = _encoded(".jpg", _frame(0))
    segment = b"\xff\xe1" + (len(preview) + 2).to_bytes(2, "big") + preview
    stream = io.BytesIO(data[:2] + segment + data[2:] + data)
    frames = [frame for _, frame in open_source("-", stream=stream)]
    assert [frame.shape for frame in frames] == [(33, 47, 3)] * 2
    assert np.array_equal(*frames)


def test_raw_frames_through_a_pipe():
    data = b"".join(_frame(k).tobytes() for k in range(4))
    frames = list(open_source("-", raw_size=(33, 47), stream=Drip(data, 5000)))
    assert len(frames) == 4
    for k, (_, frame) in enumerate(frames):
        assert np.array_equal(frame, _frame(k))


def test_part_of_a_pipe():
    data = b"".join(_frame(k).tobytes() for k in range(9))
    stream = io.BytesIO(data)
    chosen = list(open_source("-", raw_size=(33, 47), stream=stream).frames(2, 8, 3))
    assert [(index, name) for index, name, _ in chosen] == [(2, "000002"), (5, "000005")]
    assert np.array_equal(chosen[1][2], _frame(5))


@pytest.mark.parametrize(
    ("data", "raw", "message"),
    [
        (b"", None, "holds no frame"),
        (b"GIF89a", None, r"frame 0: expected a JPEG or PNG image, found bytes 47 49 46 38"),
        (_encoded(".png", _frame(0)) + b"\x89PNX", None, "frame 1: expected a JPEG or PNG"),
        (_encoded(".png", _frame(0))[:-30], None, "frame 0: the stream ends within the frame"),
        (_encoded(".jpg", _frame(0)) * 2 + b"\xff\xd8\xff", None, "frame 2: the stream ends"),
        (_encoded(".jpg", _frame(0))[:-2], None, "frame 0: the stream ends"),
        (b"\xff\xd8\xff\xd9", None, "frame 0: the image is corrupt"),
        (_frame(0).tobytes() + b"xx", (33, 47), "frame 1: the stream ends .* after 2 bytes"),
    ],
)
def test_what_is_wrong_with_a_pipe_is_said(data, raw, message):
    with pytest.raises(InputError, match=message):
        list(open_source("-", raw_size=raw, stream=io.BytesIO(data)))


def test_an_image_without_end_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("vss2.data.live_sources._MAX_IMAGE", 5000)
    stream = io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"\x7f\xff\xff\xffIDAT" + bytes(9000))
    with pytest.raises(InputError, match="frame 0: the image has no end"):
        list(open_source("-", stream=stream))


def test_raw_frames_come_from_a_pipe_only(tmp_path):
    with pytest.raises(InputError, match="standard input"):
        open_source(tmp_path, raw_size=(3, 4))
    with pytest.raises(InputError, match="positive"):
        open_source("-", raw_size=(0, 4))


def test_standard_input_of_a_process():
    code = (
        "from vss2.data.live_sources import StreamSource\n"
        "print(*[f'{name} {frame.sum()}' for name, frame in StreamSource((2, 3))])"
    )
    data = bytes(range(36))
    run = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert run.stdout.decode().split() == [
        *("000000", str(sum(range(18)))),
        *("000001", str(sum(range(18, 36)))),
    ]


def test_camera():
    opened = []
    capture = Capture(5)

    def open_capture(number):
        opened.append(number)
        return capture

    source = open_source("camera:2", open_capture=open_capture)
    assert (opened, source.fps, source.live, source.path) == ([2], 25.0, True, "camera:2")
    frames = list(source)
    assert [name for name, _ in frames] == [f"{k:06d}" for k in range(5)]
    assert np.array_equal(frames[3][1], _frame(3))
    assert not capture.opened  # released


def test_a_camera_is_left_at_the_last_frame_that_is_wanted():
    capture = Capture(100, fps=0.0)
    source = open_source("camera:0", open_capture=lambda number: capture)
    assert source.fps is None
    assert [index for index, *_ in source.frames(1, 6, 2)] == [1, 3, 5]
    assert (capture.taken, capture.opened) == (6, False)


def test_cameras_that_do_not_work():
    with pytest.raises(InputError, match="camera:7 cannot be opened"):
        open_source("camera:7", open_capture=lambda number: Capture(0, opened=False))
    with pytest.raises(InputError, match="camera:0 gives no frame"):
        list(open_source("camera:0", open_capture=lambda number: Capture(0)))
    with pytest.raises(InputError, match="'camera:front' names no camera"):
        open_source("camera:front")
