from __future__ import annotations

import colorsys

import numpy as np
import pytest

from vss2.data.thin_plate import ThinPlateSpline, ThinPlateWarp, random_warp
from vss2.data.transforms import Clip
from vss2.data.vos_transforms import (
    MEAN_COLOUR,
    ColorJitter,
    RandomAffine,
    RandomFrameCrop,
    RandomGrayscale,
    RandomResizedCrop,
    RepeatFrame,
    ResizeShorterSide,
)
from vss2.errors import InputError


def clip_of(height: int = 40, width: int = 60, count: int = 3, seed: int = 0) -> Clip:
    """Frames whose red channel is 100 x their mask, so that alignment can be seen."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, (-(-height // 10), -(-width // 10)))
    mask = np.kron(coarse, np.ones((10, 10), int))[:height, :width].astype(np.uint8)
    frame = np.stack([100 * mask, 0 * mask + 50, 255 - 100 * mask], axis=-1).astype(np.uint8)
    return Clip([frame.copy() for _ in range(count)], [mask.copy() for _ in range(count)])


def assert_aligned(clip: Clip, share: float = 0.9) -> None:
    for frame, mask in zip(clip.frames, clip.labels, strict=True):
        inside = np.any(frame != MEAN_COLOUR, axis=-1)
        same = np.abs(frame[..., 0].astype(int) - 100 * mask) < 40
        assert same[inside].mean() > share


@pytest.mark.parametrize("per_frame", [False, True])
def test_affine_moves_frames_and_masks_alike(per_frame):
    step = RandomAffine(15, (0.9, 1.1), 10, per_frame=per_frame)
    moved = step(clip_of(80, 100), np.random.default_rng(1))
    assert_aligned(moved)
    assert set(np.unique(moved.labels[0])) == {0, 1, 2}
    assert np.array_equal(moved.labels[0], moved.labels[1]) != per_frame


def test_affine_turns_about_the_centre_and_scales_areas():
    frame = np.zeros((41, 41, 3), np.uint8)
    mask = np.zeros((41, 41), np.uint8)
    mask[15:26, 15:26] = 255
    (turned,) = RandomAffine(40)(Clip([frame], [mask]), np.random.default_rng(0)).labels
    rows, columns = np.nonzero(turned)
    assert abs(rows.mean() - 20) < 0.3
    assert abs(columns.mean() - 20) < 0.3
    step = RandomAffine(0, (2.0, 2.0), mask_interpolation="bicubic")
    (large,) = step(Clip([frame], [mask]), np.random.default_rng(0)).labels
    assert large.astype(float).sum() / 255 == pytest.approx(4 * 121, rel=0.03)
    assert np.any((large > 0) & (large < 255))  # soft edges


def test_a_still_affine_is_the_identity():
    clip = clip_of()
    same = RandomAffine()(clip, np.random.default_rng(0))
    assert np.array_equal(same.frames[1], clip.frames[1])
    assert np.array_equal(same.labels[1], clip.labels[1])


def test_resized_crops_hold_their_share_and_aspect():
    step = RandomResizedCrop((32, 32), (0.36, 1.0))
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        rows, columns = step._box(100, 150, rng)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        assert rows.start >= 0
        assert rows.stop <= 100
        assert columns.stop <= 150
        assert 0.74 < width / height < 1.35
        shares.append(height * width / 15000)
    assert min(shares) > 0.35
    assert max(shares) > 0.8
    cut = step(clip_of(), rng)
    assert {f.shape for f in cut.frames} == {(32, 32, 3)}
    assert_aligned(cut, 0.75)
    assert np.array_equal(cut.labels[0], cut.labels[2])
    # Very wide: no box of the wanted share fits, the central one is taken.
    rows, columns = RandomResizedCrop((8, 8), (1.0, 1.0))._box(30, 300, rng)
    assert (rows.start, rows.stop) == (0, 30)
    assert columns.stop - columns.start == 40
    assert columns.start == 130


def test_shorter_side_is_exact_and_the_longer_truncated():
    rng = np.random.default_rng(0)
    clip = ResizeShorterSide(64)(clip_of(40, 61), rng)
    assert clip.frames[0].shape == (64, int(64 * 61 / 40), 3)
    assert ResizeShorterSide(64)(clip_of(61, 40), rng).labels[0].shape == (97, 64)
    clip = clip_of(40, 60)
    assert ResizeShorterSide(40)(clip, rng) is clip


def test_frame_crops_differ_and_small_frames_are_padded():
    step = RandomFrameCrop((24, 24))
    cut = step(clip_of(40, 60), np.random.default_rng(0))
    assert_aligned(cut, 0.99)
    assert not np.array_equal(cut.frames[0], cut.frames[1])
    small = step(clip_of(10, 30), np.random.default_rng(0))
    assert {f.shape for f in small.frames} == {(24, 24, 3)}
    assert any(np.all(frame == MEAN_COLOUR, axis=-1).any() for frame in small.frames)


def test_repeating_takes_single_images():
    assert len(RepeatFrame(3)(clip_of(count=1), np.random.default_rng(0)).frames) == 3
    with pytest.raises(InputError, match="single images, got 3"):
        RepeatFrame(3)(clip_of(), np.random.default_rng(0))


def test_jitter_is_one_draw_or_one_for_each_frame():
    clip = clip_of()
    shared = ColorJitter(0.1, 0.1, 0.1, 0.1)(clip, np.random.default_rng(0))
    assert np.array_equal(shared.frames[0], shared.frames[2])
    assert not np.array_equal(shared.frames[0], clip.frames[0])
    own = ColorJitter(0.1, 0.1, 0.1, 0.1, per_frame=True)(clip, np.random.default_rng(0))
    assert not np.array_equal(own.frames[0], own.frames[2])
    still = ColorJitter()(clip, np.random.default_rng(0))
    assert np.array_equal(still.frames[0], clip.frames[0])


class Fixed:
    """A generator whose factor is always the upper end."""

    def permutation(self, n):
        return np.arange(n)

    def uniform(self, low, high):
        return high


def test_each_colour_step_does_what_it_says():
    colour = np.array([200, 100, 40])
    frame = np.tile(colour.astype(np.uint8), (4, 4, 1))
    frame[:2] = 20

    def step(**spans):
        return ColorJitter(**spans)(Clip([frame], [frame[..., 0]]), Fixed()).frames[0][3, 3]

    assert step(brightness=0.1).tolist() == [220, 110, 44]
    grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 40
    mean = round((grey + 20) / 2)
    np.testing.assert_allclose(step(contrast=0.1), mean + (colour - mean) * 1.1, atol=1)
    np.testing.assert_allclose(step(saturation=0.1), grey + (colour - grey) * 1.1, atol=1)
    hue, saturation, value = colorsys.rgb_to_hsv(*(colour / 255))
    expected = 255 * np.array(colorsys.hsv_to_rgb(hue + 0.05, saturation, value))
    np.testing.assert_allclose(step(hue=0.05), expected, atol=5)


def test_grey_frames_keep_three_channels():
    grey = RandomGrayscale(1.0)(clip_of(), np.random.default_rng(0)).frames[0]
    assert grey.shape[2] == 3
    assert np.array_equal(grey[..., 0], grey[..., 2])


def test_spline_passes_through_its_points_and_keeps_planes():
    rng = np.random.default_rng(0)
    points, values = rng.random((12, 2)), rng.normal(size=(12, 2))
    spline = ThinPlateSpline(points, values)
    for point, value in zip(points, values, strict=True):
        np.testing.assert_allclose(spline.on_grid(point[:1], point[1:])[:, 0, 0], value, atol=2e-5)
    plane = ThinPlateSpline(points, 2 + points @ np.array([[1.0], [3.0]]))
    x, y = np.linspace(0, 1, 5), np.linspace(0, 1, 4)
    np.testing.assert_allclose(plane.on_grid(x, y)[0], 2 + x[None] + 3 * y[:, None], atol=1e-4)
    with pytest.raises(InputError, match="not on a line"):
        ThinPlateSpline(np.zeros((4, 2)), np.zeros((4, 1)))


def test_warp_moves_frames_and_masks_alike():
    clip = clip_of(80, 80)
    warped = ThinPlateWarp(prob=1.0, std=0.05)(clip, np.random.default_rng(0))
    assert not np.array_equal(warped.labels[0], warped.labels[1])
    for frame, mask in zip(warped.frames, warped.labels, strict=True):
        assert np.mean(np.abs(frame[..., 0].astype(int) - 100 * mask) < 40) > 0.85
    still = ThinPlateWarp(prob=0.0)(clip, np.random.default_rng(0))
    assert still.frames[0] is clip.frames[0]
    x, y = random_warp(30, 50, 12, 0.0, np.random.default_rng(0))
    np.testing.assert_allclose(x[3], np.linspace(0, 50, 50), atol=1e-3)
    np.testing.assert_allclose(y[:, 3], np.linspace(0, 30, 30), atol=1e-3)
    with pytest.raises(InputError, match="at least 12 pixels"):
        random_warp(10, 50, 12, 0.02, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomAffine(scale=(1.1, 0.9)), "ascending"),
        (lambda: RandomAffine(interpolation="cubic"), "interpolation is one of nearest"),
        (lambda: RandomResizedCrop((0, 3)), "height, width"),
        (lambda: ColorJitter(hue=0.6), "hue in 0..0.5"),
        (lambda: RandomGrayscale(2.0), "0..1"),
        (lambda: ThinPlateWarp(points=2), "at least 3 points"),
        (lambda: ResizeShorterSide(0), "at least 1"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(InputError, match=words):
        make()
