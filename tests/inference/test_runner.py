"""Whole runs: the same files whether overlapped or not, stopped and resumed or not."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.modeling.tiny import TinySegmentor
from vss2.data.frame_sources import FrameSource
from vss2.data.image_io import read_label, write_image
from vss2.data.live_sources import LiveSource
from vss2.data.video_io import VideoWriter, open_source
from vss2.errors import InputError
from vss2.inference import ResultWriter, Selection, Stopped, VideoPredictor, run
from vss2.interrupt import StopRequest
from vss2.modeling.session import WindowSession
from vss2.modeling.window import PUBLISHED_START_TABLE, BlockWindow, OffsetWindow

NAMES, COLORS = ["sky", "sea", "sand"], [(90, 160, 250), (20, 60, 200), (240, 210, 120)]
COUNT = 20
WINDOWS = {
    "single": OffsetWindow(),
    "offsets": OffsetWindow((-9, -6, -3, 0), PUBLISHED_START_TABLE),
    "no table": OffsetWindow((-4, -2, 0)),
    "blocks": BlockWindow(2),
    "long blocks": BlockWindow(4),
}


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(0)
    for k in range(COUNT):
        write_image(folder / f"f{k:03d}.png", rng.integers(0, 256, (36, 44, 3), np.uint8))
    return folder


class StopAfter:
    """Asks to stop when it was asked `count` times."""

    def __init__(self, count: int):
        self.count = count

    def __call__(self) -> bool:
        self.count -= 1
        return self.count < 0


def _predictor(window, scores_stride=None):
    model = TinySegmentor(window)
    return VideoPredictor(model, lambda image: image[:32, :40], scores_stride)


def _writer(folder, **options):
    return ResultWriter(folder, NAMES, COLORS, rle=True, side_by_side=True, **options)


def _contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("every", [1, 3])
def test_overlapped_and_serial_runs_write_the_same_bytes(frames, tmp_path, window, every):
    contents = []
    for overlap in (False, True):
        folder = tmp_path / str(overlap)
        predictor = _predictor(WINDOWS[window], scores_stride=2)
        report = run(
            predictor,
            open_source(frames),
            _writer(folder, scores=True),
            Selection(2, 18, every),
            overlap=overlap,
        )
        assert report.frames == len(range(2, 18, every))
        contents.append(_contents(folder))
    assert contents[0] == contents[1]
    assert len(contents[0]) == 3 * report.frames + 3


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_stopped_run_goes_on_to_the_same_bytes(frames, tmp_path, window, overlap):
    run(_predictor(WINDOWS[window]), open_source(frames), _writer(tmp_path / "whole"))
    for count in (1, 11, 19):
        folder = tmp_path / str(count)
        with pytest.raises(Stopped, match="stopped after"):
            run(
                _predictor(WINDOWS[window]),
                open_source(frames),
                _writer(folder),
                overlap=overlap,
                stop=StopAfter(count),
            )
        assert {p.name for p in folder.iterdir()} == {"labels", "rle"}
        there = len(list((folder / "labels").iterdir()))
        assert there <= count
        predictor = _predictor(WINDOWS[window])
        writer = _writer(folder)
        report = run(predictor, open_source(frames), writer, overlap=overlap, resume=True)
        assert (report.frames, report.kept) == (COUNT, there)
        assert _contents(folder) == _contents(tmp_path / "whole")
        span = WINDOWS[window].lookback + WINDOWS[window].lag
        assert predictor.model.encoded <= COUNT - there + 2 * span


@pytest.mark.parametrize(("window_only", "encoded"), [(False, COUNT), (True, COUNT - 11 + 9)])
def test_a_session_that_may_remember_more_sees_the_whole_video_again(
    frames, tmp_path, monkeypatch, window_only, encoded
):
    session = type("Session", (WindowSession,), {"window_only": window_only})
    monkeypatch.setattr(TinySegmentor, "new_session", lambda self: session(self))
    window = WINDOWS["offsets"]
    with pytest.raises(Stopped):
        run(_predictor(window), open_source(frames), _writer(tmp_path), stop=StopAfter(11),
            overlap=False)  # fmt: skip
    predictor = _predictor(window)
    run(predictor, open_source(frames), _writer(tmp_path), resume=True)
    assert predictor.model.encoded == encoded


@pytest.mark.parametrize("window", ["offsets", "blocks"])
def test_every_nth_frame_has_the_labels_of_a_run_over_all(frames, tmp_path, window):
    run(_predictor(WINDOWS[window]), open_source(frames), _writer(tmp_path / "all"))
    run(_predictor(WINDOWS[window]), open_source(frames), _writer(tmp_path / "some"),
        Selection(every=4))  # fmt: skip
    names = sorted(p.name for p in (tmp_path / "some" / "labels").iterdir())
    assert names == [f"f{k:03d}.png" for k in range(0, COUNT, 4)]
    for name in names:
        whole, part = (tmp_path / run_ / "labels" / name for run_ in ("all", "some"))
        assert np.array_equal(read_label(whole), read_label(part))
    assert open_source(tmp_path / "some" / "overlay.mp4").num_frames == len(names)


def test_frames_that_nothing_depends_on_are_not_encoded(frames, tmp_path):
    predictor = _predictor(WINDOWS["single"])
    run(predictor, open_source(frames), _writer(tmp_path), Selection(3, 19, 5))
    assert predictor.model.encoded == len(range(3, 19, 5))


def test_start_begins_a_video_of_its_own(frames, tmp_path):
    shorter = tmp_path / "frames"
    for _, name, frame in open_source(frames).frames(7, 15):
        write_image(shorter / f"{name}.png", frame)
    window = WINDOWS["offsets"]
    run(_predictor(window), open_source(frames), _writer(tmp_path / "a"), Selection(7, 15))
    run(_predictor(window), open_source(shorter), _writer(tmp_path / "b"))
    a, b = (_contents(tmp_path / name / "labels") for name in "ab")
    assert a == b
    assert len(a) == 8


def test_a_video_resumes_too(frames, tmp_path):
    with VideoWriter(tmp_path / "v.mp4", fps=9) as video:
        for _, frame in open_source(frames):
            video.write(frame)
    source = open_source(tmp_path / "v.mp4")
    selection = Selection(3, 15, 2)
    run(_predictor(WINDOWS["offsets"]), source, _writer(tmp_path / "whole"), selection)
    with pytest.raises(Stopped):
        run(_predictor(WINDOWS["offsets"]), source, _writer(tmp_path / "out"), selection,
            stop=StopAfter(8))  # fmt: skip
    run(_predictor(WINDOWS["offsets"]), source, _writer(tmp_path / "out"), selection, resume=True)
    assert _contents(tmp_path / "out") == _contents(tmp_path / "whole")


def test_a_finished_run_without_its_video_is_filmed_again(frames, tmp_path):
    predictor = _predictor(WINDOWS["blocks"])
    run(predictor, open_source(frames), _writer(tmp_path))
    before, decoded = _contents(tmp_path), predictor.model.decoded
    (tmp_path / "overlay.mp4").unlink()
    report = run(predictor, open_source(frames), _writer(tmp_path), resume=True)
    assert (report.kept, predictor.model.decoded) == (COUNT, decoded)
    assert _contents(tmp_path) == before


def test_a_missing_file_in_the_middle_is_made_again(frames, tmp_path):
    run(_predictor(WINDOWS["offsets"]), open_source(frames), _writer(tmp_path))
    before = _contents(tmp_path)
    (tmp_path / "rle" / "f012.json").unlink()
    report = run(
        _predictor(WINDOWS["offsets"]), open_source(frames), _writer(tmp_path), resume=True
    )
    assert report.kept == 12
    assert _contents(tmp_path) == before


class Generated(FrameSource):
    """Frames made on the way; `at[index]` is called first."""

    kind, path = "folder", "generated"

    def __init__(self, count, at=None, size=(36, 44), seconds=0.0):
        self.num_frames, self.at, self.size, self.seconds = count, at or {}, size, seconds

    def frames(self, start=0, end=None, step=1):
        for index in range(*slice(start, end, step).indices(self.num_frames)):
            self.at.get(index, lambda: None)()
            time.sleep(self.seconds)
            yield index, f"{index:06d}", np.full((*self.size, 3), index % 251, np.uint8)


def _raise(error):
    def call():
        raise error

    return call


@pytest.mark.parametrize("overlap", [False, True])
def test_an_error_of_the_reader_is_the_error_and_frames_before_it_are_written(tmp_path, overlap):
    source = Generated(9, {5: _raise(InputError("frame 5 is corrupt"))})
    with pytest.raises(InputError, match="frame 5 is corrupt"):
        run(_predictor(WINDOWS["single"]), source, _writer(tmp_path), overlap=overlap)
    assert len(list((tmp_path / "labels").iterdir())) == 5
    assert not (tmp_path / "overlay.mp4").exists()
    assert not {"reader", "writer"} & {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("part", ["add_files", "add_pictures"])
def test_an_error_of_a_writer_is_the_error(tmp_path, overlap, part, monkeypatch):
    writer = _writer(tmp_path)
    seen = []

    def fail(prediction):
        seen.append(prediction.name)
        if len(seen) == 3:
            raise InputError("the disk is full")

    monkeypatch.setattr(writer, part, fail)
    with pytest.raises(InputError, match="the disk is full"):
        run(_predictor(WINDOWS["single"]), Generated(100), writer, overlap=overlap)
    assert len(seen) == 3
    assert not (tmp_path / "overlay.mp4").exists()


def test_nothing_to_segment_is_an_error(frames, tmp_path):
    with pytest.raises(InputError, match="20 frames: none is left from frame 20"):
        run(_predictor(WINDOWS["single"]), open_source(frames), _writer(tmp_path), Selection(20))
    empty = Generated(0)
    empty.num_frames = None
    empty.frames = lambda *args: iter(())
    with pytest.raises(InputError, match="no frame from frame 4"):
        run(_predictor(WINDOWS["single"]), empty, _writer(tmp_path), Selection(4))
    for bad in ({"start": -1}, {"every": 0}, {"start": 3, "end": 3}):
        with pytest.raises(InputError, match="every >= 1"):
            Selection(**bad)


def test_ctrl_c_ends_after_the_frame(tmp_path, capfd):
    source = Generated(400, {30: lambda: os.kill(os.getpid(), signal.SIGINT)}, seconds=0.001)
    before = signal.getsignal(signal.SIGINT)
    with StopRequest("ending") as stop, pytest.raises(Stopped):
        run(_predictor(WINDOWS["blocks"]), source, _writer(tmp_path), stop=stop)
    assert signal.getsignal(signal.SIGINT) is before
    assert "ending" in capfd.readouterr().err
    assert 10 < len(list((tmp_path / "labels").iterdir())) < 200
    assert len(list((tmp_path / "labels").iterdir())) == len(list((tmp_path / "rle").iterdir()))


class Endless(LiveSource):
    """Six frames, then a read that does not return while the test runs."""

    kind, path = "camera", "camera:9"

    def __init__(self):
        self.blocked, self.release = threading.Event(), threading.Event()

    def _read(self):
        for k in range(6):
            yield np.full((36, 44, 3), k, np.uint8)
        self.blocked.set()
        self.release.wait(30)


@pytest.mark.parametrize("window", ["single", "blocks"])
def test_stopping_a_live_source_completes_the_run(tmp_path, window):
    source = Endless()
    report = run(_predictor(WINDOWS[window]), source, _writer(tmp_path), stop=source.blocked.is_set)
    source.release.set()
    count = len(list((tmp_path / "labels").iterdir()))
    assert report.frames == count == open_source(tmp_path / "overlay.mp4").num_frames
    assert 0 < count <= 6


@pytest.mark.parametrize("overlap", [False, True])
def test_reading_and_writing_overlap_the_network(tmp_path, overlap):
    """What each of the three waits for happens only while it is at work."""
    read, written = threading.Event(), threading.Event()
    predictor, writer = _predictor(WINDOWS["single"]), _writer(tmp_path)
    encode = predictor.model.encode
    encoded, found = [], {}

    def slow_encode(images):
        encoded.append(len(encoded))
        if len(encoded) == 3:
            found["read"] = read.wait(20 if overlap else 0)
        if len(encoded) == 6:
            written.set()
        return encode(images)

    def slow(part):
        write = getattr(writer, part)

        def slow_write(prediction):
            if part not in found:
                found[part] = written.wait(20 if overlap else 0)
            return write(prediction)

        return slow_write

    predictor.model.encode = slow_encode
    writer.add_files, writer.add_pictures = slow("add_files"), slow("add_pictures")
    report = run(predictor, Generated(8, {4: read.set}), writer, overlap=overlap)
    # Frame 4 is read while the network has frame 2, frame 5 encoded while frame 0 is written.
    assert found == {"read": overlap, "add_files": overlap, "add_pictures": overlap}
    assert report.frames == 8
    waited = report.waited_for_frames + report.waited_for_writers
    assert 0 < waited < report.seconds if overlap else waited == 0


@pytest.mark.soak  # on an idle machine: it compares seconds
def test_overlap_saves_the_time_of_reading_and_writing(tmp_path):
    count, step = 20, 0.02
    predictor = _predictor(WINDOWS["single"])
    encode = predictor.model.encode
    predictor.model.encode = lambda images: (time.sleep(step), encode(images))[1]
    reports = []
    for overlap in (False, True):
        writer = _writer(tmp_path / str(overlap))
        for part in ("add_files", "add_pictures"):
            write = getattr(writer, part)
            setattr(writer, part, lambda p, write=write: (time.sleep(0.7 * step), write(p)))
        source = Generated(count, seconds=0.7 * step)
        reports.append(run(predictor, source, writer, overlap=overlap))
    serial, overlapped = reports
    # One after the other is 3.1 steps a frame, the network alone one.
    assert overlapped.seconds < 0.75 * serial.seconds
    assert overlapped.waited_for_frames + overlapped.waited_for_writers < count * step


def _memory() -> float:
    """MB in use; their peak where the system does not tell."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def test_memory_does_not_grow_with_the_video(tmp_path):
    memory = []
    run(
        _predictor(WINDOWS["offsets"], scores_stride=8),
        Generated(150, size=(192, 256)),
        _writer(tmp_path, scores=True),
        progress=lambda: memory.append(_memory()),
    )
    assert len(memory) == 150
    # 120 frames of this size, kept by mistake, are 17 MB.
    assert max(memory) - max(memory[:30]) < 10


def test_run_length_files_are_json_at_every_moment(tmp_path):
    seen = []

    def look():
        seen.extend(json.loads(p.read_text()) for p in (tmp_path / "rle").glob("[!.]*.json"))

    run(_predictor(WINDOWS["single"]), Generated(12, {9: look}, seconds=0.005), _writer(tmp_path))
    assert len(seen) > 2
    assert all(document["height"] == 36 for document in seen)
