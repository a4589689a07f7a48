from __future__ import annotations

import av
import numpy as np
import pytest

from vss2.data.image_io import write_image
from vss2.data.video_io import VideoWriter, open_source
from vss2.errors import InputError, InputFileError


def _frame(k: int, size=(32, 48)) -> np.ndarray:
    """A flat frame whose brightness tells its number."""
    return np.full((*size, 3), 20 * k + 10, np.uint8)


def _write_video(path, count=5, size=(32, 48), fps=12.0):
    with VideoWriter(path, fps=fps) as writer:
        for k in range(count):
            writer.write(_frame(k, size))
    return path


def test_folder_gives_sorted_frames_by_stem(tmp_path):
    for k, name in enumerate(["b.png", "a.jpg", "c.bmp", "d.webp"]):
        write_image(tmp_path / name, _frame(k))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    source = open_source(tmp_path)
    assert (source.kind, source.num_frames, source.fps) == ("folder", 4, None)
    frames = dict(source)
    assert list(frames) == ["a", "b", "c", "d"]
    assert frames["b"].shape == (32, 48, 3)
    assert frames["b"].dtype == np.uint8
    assert abs(int(frames["a"].mean()) - 30) <= 2
    assert len(list(source)) == 4  # each iteration starts anew


def test_an_image_is_a_source_of_one_frame(tmp_path):
    write_image(tmp_path / "one.png", _frame(3))
    source = open_source(tmp_path / "one.png")
    assert (source.kind, source.num_frames) == ("file", 1)
    assert [name for name, _ in source] == ["one"]


def test_video_round_trip(tmp_path):
    path = _write_video(tmp_path / "v.mp4")
    source = open_source(path)
    assert (source.kind, source.num_frames, source.fps) == ("file", 5, 12.0)
    frames = list(source)
    assert [name for name, _ in frames] == [f"{k:06d}" for k in range(5)]
    for k, (_, frame) in enumerate(frames):
        assert frame.shape == (32, 48, 3)
        assert abs(int(frame.mean()) - (20 * k + 10)) <= 3
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_codec_plays_everywhere(tmp_path):
    with av.open(str(_write_video(tmp_path / "v.mp4"))) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"


def test_odd_sizes_are_padded_by_repetition(tmp_path):
    path = _write_video(tmp_path / "v.mp4", count=2, size=(33, 47))
    frames = [frame for _, frame in open_source(path)]
    assert frames[1].shape == (34, 48, 3)
    assert np.ptp(frames[1].astype(int)) <= 4


def test_missing_and_empty_inputs(tmp_path):
    with pytest.raises(InputFileError, match="does not exist"):
        open_source(tmp_path / "nothing")
    (tmp_path / "video" / "origin").mkdir(parents=True)
    with pytest.raises(InputFileError, match="holds no images"):
        open_source(tmp_path / "video")
    write_image(tmp_path / "video" / "origin" / "0.jpg", _frame(0))
    with pytest.raises(InputFileError, match=r"Did you mean '.*origin'"):
        open_source(tmp_path / "video")


def test_two_images_of_one_name(tmp_path):
    write_image(tmp_path / "a.png", _frame(0))
    write_image(tmp_path / "a.jpg", _frame(0))
    with pytest.raises(InputError, match=r"a\.jpg and a\.png"):
        open_source(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a video at all\n" * 50, bytes(range(256)) * 40])
@pytest.mark.parametrize("name", ["v.mp4", "v.txt"])
def test_what_is_no_video_is_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=name):
        list(open_source(path))


def test_a_cut_video_is_named(tmp_path):
    path = _write_video(tmp_path / "v.mp4", count=8)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(InputError, match=r"v\.mp4"):
        list(open_source(path))


def test_a_corrupt_frame_is_named(tmp_path):
    write_image(tmp_path / "0.png", _frame(0))
    (tmp_path / "1.png").write_bytes(b"\x89PNG broken")
    source = iter(open_source(tmp_path))
    assert next(source)[0] == "0"
    with pytest.raises(InputFileError, match=r"1\.png"):
        next(source)


def test_a_corrupt_frame_of_a_video_is_numbered(tmp_path):
    path = tmp_path / "v.avi"
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "rgb24"
        for frame in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    data = bytearray(path.read_bytes())
    third = [i for i in range(len(data)) if data[i : i + 4] == b"\x89PNG"][2]
    data[third : third + 200] = bytes(200)
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"v\.avi: frame 2 is corrupt"):
        list(open_source(path))


def test_a_failed_block_leaves_no_file_and_keeps_the_old_one(tmp_path):
    path = _write_video(tmp_path / "v.mp4")
    before = path.read_bytes()

    def fail():
        with VideoWriter(path) as writer:
            writer.write(_frame(0))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_writer_rejects_what_it_cannot_write(tmp_path):
    with pytest.raises(InputError, match="fps"):
        VideoWriter(tmp_path / "v.mp4", fps=0)
    with pytest.raises(InputError, match="No frame"), VideoWriter(tmp_path / "v.mp4"):
        pass
    with VideoWriter(tmp_path / "v.mp4") as writer:
        writer.write(_frame(0))
        with pytest.raises(InputError, match=r"frame 1 is 16x48, the first one is 32x48"):
            writer.write(_frame(1, (16, 48)))
    (tmp_path / "v.mp4").unlink()
    with pytest.raises(InputError, match="uint8"), VideoWriter(tmp_path / "v.mp4") as writer:
        writer.write(np.zeros((32, 48, 3), np.float32))
    with pytest.raises(InputError, match="Cannot write"), VideoWriter(tmp_path / "no" / "v.mp4"):
        pass
    with pytest.raises(InputError, match="Cannot write"), VideoWriter(tmp_path / "v.nothing"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_chosen_frames_of_a_folder_and_a_video(tmp_path):
    for k in range(9):
        write_image(tmp_path / "frames" / f"f{k}.png", _frame(k))
    (tmp_path / "frames" / "f5.png").write_bytes(b"cut")  # not chosen, so not read
    sources = [open_source(tmp_path / "frames"), open_source(_write_video(tmp_path / "v.mp4", 9))]
    for source in sources:
        chosen = list(source.frames(1, 8, 3))
        assert [index for index, *_ in chosen] == [1, 4, 7]
        assert [name for _, name, _ in chosen] == [source.name(k) for k in (1, 4, 7)]
        for index, _, frame in chosen:
            assert abs(int(frame.mean()) - (20 * index + 10)) <= 3
        assert [index for index, *_ in source.frames(7)] == [7, 8]
        assert list(source.frames(20)) == []
    assert sources[0].name(9) is None


def test_an_input_is_known_by_its_content(tmp_path):
    def identity(path):
        return open_source(path).identity()

    for folder in ("a", "b"):
        for k in range(3):
            write_image(tmp_path / folder / f"{k}.bmp", _frame(k))
    first = identity(tmp_path / "a")
    assert first == identity(tmp_path / "b")
    write_image(tmp_path / "b" / "1.bmp", _frame(7))
    changed = identity(tmp_path / "b")
    assert changed != first
    (tmp_path / "a" / "2.bmp").rename(tmp_path / "a" / "3.bmp")
    assert identity(tmp_path / "a") != first
    videos = [_write_video(tmp_path / name, count) for name, count in (("v.mp4", 5), ("w.mp4", 6))]
    assert identity(videos[0]) != identity(videos[1])
    assert identity(videos[0]) == identity(_write_video(tmp_path / "x.mp4", 5))


def test_the_same_frames_are_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (36, 44, 3), np.uint8) for _ in range(12)]
    contents = set()
    for _ in range(40):
        with VideoWriter(tmp_path / "v.mp4") as writer:
            for frame in frames:
                writer.write(frame)
        contents.add((tmp_path / "v.mp4").read_bytes())
    assert len(contents) == 1
