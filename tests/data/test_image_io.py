from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from vss2.data.image_io import read_image, read_label, write_image, write_label
from vss2.errors import InputError, InputFileError


@pytest.fixture
def photo() -> np.ndarray:
    y, x = np.mgrid[0:37, 0:53]
    return np.stack([3 * x, 5 * y, 255 - 2 * (x + y)], axis=-1).astype(np.uint8)


def test_png_round_trip_is_exact_and_rgb(tmp_path, photo):
    write_image(tmp_path / "new" / "a.png", photo)
    image = read_image(tmp_path / "new" / "a.png")
    assert image.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(image, photo)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "new" / "a.png")), photo)


def test_jpeg_is_decoded_as_opencv_does(tmp_path, photo):
    write_image(tmp_path / "a.jpg", photo)
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.jpg"), cv2.imread(str(tmp_path / "a.jpg"))[..., ::-1]
    )


def test_gray_images_become_rgb(tmp_path):
    write_label(tmp_path / "gray.png", np.full((4, 5), 7))
    assert read_image(tmp_path / "gray.png").tolist() == np.full((4, 5, 3), 7).tolist()


@pytest.mark.parametrize("colors", [None, [(9, 8, 7), (1, 2, 3)]])
def test_label_round_trip_keeps_all_ids(tmp_path, colors):
    labels = np.arange(256, dtype=np.int64).reshape(16, 16)
    write_label(tmp_path / "l.png", labels, colors)
    read = read_label(tmp_path / "l.png")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, labels)
    with Image.open(tmp_path / "l.png") as image:
        assert image.mode == ("L" if colors is None else "P")
        if colors:
            assert image.getpalette()[:6] == [9, 8, 7, 1, 2, 3]


def test_few_bits_per_palette_index_are_unpacked(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [3, 2]], np.uint8))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "two_bits.png")
    assert read_label(tmp_path / "two_bits.png").tolist() == [[0, 1], [3, 2]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16", "1"])
def test_masks_that_are_not_single_bytes_are_refused(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="8-bit palette or gray") as caught:
        read_label(tmp_path / "mask.png")
    assert str(tmp_path / "mask.png") in str(caught.value)


@pytest.mark.parametrize("read", [read_image, read_label])
@pytest.mark.parametrize("content", [None, b"", b"no image at all", b"\xff\xd8\xff", b"\x89PNG"])
def test_unreadable_files_are_named(tmp_path, read, content):
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputFileError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_image, read_label])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_cut_off_files_are_named(tmp_path, photo, read, suffix, share):
    write_image(tmp_path / f"whole{suffix}", photo)
    data = (tmp_path / f"whole{suffix}").read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputFileError, match="cut off"):
        read(path)


def _jpeg(photo: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, format="JPEG", **options)
    return buffer.getvalue()


def test_an_embedded_preview_does_not_hide_a_cut(tmp_path, photo):
    whole = _jpeg(photo)
    preview = b"\xff\xe1" + (len(whole) + 2).to_bytes(2, "big") + whole
    data = whole[:2] + preview + whole[2:]
    (tmp_path / "whole.jpg").write_bytes(data)
    (tmp_path / "cut.jpg").write_bytes(data[:-30])
    assert read_image(tmp_path / "whole.jpg").shape == photo.shape
    with pytest.raises(InputFileError, match="cut off"):
        read_image(tmp_path / "cut.jpg")


def test_progressive_and_padded_jpegs_are_whole(tmp_path, photo):
    (tmp_path / "p.jpg").write_bytes(_jpeg(photo, progressive=True))
    (tmp_path / "q.jpg").write_bytes(_jpeg(photo) + b"\0" * 64)
    assert read_image(tmp_path / "p.jpg").shape == photo.shape
    assert read_image(tmp_path / "q.jpg").shape == photo.shape


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(InputFileError, match=str(tmp_path)):
        read_image(tmp_path)


def test_writers_refuse_wrong_arrays(tmp_path, photo):
    with pytest.raises(InputError, match=r"\(H, W, 3\)"):
        write_image(tmp_path / "a.png", photo.astype(np.float32))
    with pytest.raises(InputError, match="suffix"):
        write_image(tmp_path / "a.unknown", photo)
    with pytest.raises(InputError, match=r"0\.\.255"):
        write_label(tmp_path / "a.png", np.full((2, 2), 256))
    with pytest.raises(InputError, match="integer labels"):
        write_label(tmp_path / "a.png", photo)
    with pytest.raises(InputError, match="257 colours"):
        write_label(tmp_path / "a.png", np.zeros((2, 2), np.uint8), [(0, 0, 0)] * 257)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path, photo, monkeypatch):
    path = tmp_path / "a.png"
    write_image(path, photo)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vss2.data.image_io.os.replace", fail)
    with pytest.raises(InputFileError, match="No space left"):
        write_image(path, 255 - photo)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(read_image(path), photo)
