from __future__ import annotations

import cv2
import numpy as np
import pytest
from omegaconf import OmegaConf

from vss2.data.transforms import (
    Clip,
    PhotoMetricDistortion,
    RandomCrop,
    RandomFlip,
    RandomResize,
    TestResize,
    fit_size,
)
from vss2.errors import InputError


def make_clip(height: int = 60, width: int = 90, frames: int = 3, block: int = 10) -> Clip:
    """Frames whose red channel is 20 times the label of the pixel."""
    labels = []
    for t in range(frames):
        y, x = np.mgrid[0:height, 0:width]
        labels.append(((y // block + 2 * (x // block) + t) % 10).astype(np.uint8))
    return Clip([np.stack([20 * m, m, 200 - m], axis=-1) for m in labels], labels)


def published_steps(bgr: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The published colour pipeline on a BGR image in float32, with the draws of `rng`."""

    def convert(image, alpha=1.0, beta=0.0):
        return np.clip(image.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

    def contrast(image):
        return convert(image, alpha=rng.uniform(0.5, 1.5)) if rng.integers(2) else image

    if rng.integers(2):
        bgr = convert(bgr, beta=rng.uniform(-32, 32))
    mode = rng.integers(2)
    if mode == 1:
        bgr = contrast(bgr)
    if rng.integers(2):
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        hsv[:, :, 1] = convert(hsv[:, :, 1], alpha=rng.uniform(0.5, 1.5))
        bgr = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if rng.integers(2):
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + rng.integers(-18, 18)) % 180
        bgr = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return contrast(bgr) if mode == 0 else bgr


def test_distortion_equals_the_published_bgr_computation():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    distort = PhotoMetricDistortion()
    changed = 0
    for seed in range(60):
        clip = distort(Clip([image], []), np.random.default_rng(seed))
        expected = published_steps(image[..., ::-1].copy(), np.random.default_rng(seed))
        np.testing.assert_array_equal(clip.frames[0], expected[..., ::-1])
        changed += not np.array_equal(clip.frames[0], image)
    assert changed > 50


def test_distortion_is_drawn_for_every_frame_and_spares_labels():
    clip = make_clip(frames=1)
    twice = Clip([clip.frames[0], clip.frames[0]], [clip.labels[0], clip.labels[0]])
    before = clip.frames[0].copy()
    results = [PhotoMetricDistortion()(twice, np.random.default_rng(seed)) for seed in range(8)]
    assert sum(not np.array_equal(*result.frames) for result in results) >= 6
    np.testing.assert_array_equal(results[0].labels[1], clip.labels[0])
    np.testing.assert_array_equal(clip.frames[0], before)


def test_hue_stays_in_the_published_range():
    """Each of the 36 shifts in [-18, 17] occurs; pure red has hue 0, so the shift is visible."""
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    only_hue = PhotoMetricDistortion(brightness_delta=0, contrast_range=[1, 1])
    only_hue.saturation_range = (1.0, 1.0)
    rng, shifts = np.random.default_rng(0), set()
    for _ in range(3000):
        frame = only_hue(Clip([red], []), rng).frames[0]
        hue = int(cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)[0, 0, 0])
        shifts.add(hue - 180 if hue > 90 else hue)
    assert shifts == set(range(-18, 18))


def test_resize_keeps_the_aspect_and_rounds_as_published():
    assert fit_size(480, 853, (853, 480)) == (480, 853)
    assert fit_size(120, 211, (853, 480)) == (480, 844)
    assert fit_size(211, 120, (853, 480)) == (844, 480)  # the box has no orientation
    assert fit_size(90, 220, (853, 480)) == (349, 853)
    assert fit_size(1, 1000, (100, 100)) == (1, 100)


def test_random_resize_draws_once_for_the_clip():
    resize, sizes = RandomResize(scale=(90, 60), ratio_range=(0.5, 2.0)), set()
    for seed in range(40):
        clip = resize(make_clip(), np.random.default_rng(seed))
        shapes = {frame.shape[:2] for frame in clip.frames} | {m.shape for m in clip.labels}
        assert len(shapes) == 1
        sizes |= shapes
        assert all(set(np.unique(label)) <= set(range(10)) for label in clip.labels)
    heights = [height for height, _ in sizes]
    assert min(heights) < 40
    assert max(heights) > 105
    assert all(29 <= height <= 120 for height in heights)


def test_random_resize_uses_bilinear_and_nearest():
    clip = make_clip()
    result = RandomResize(scale=(90, 60), ratio_range=(1.5, 1.5))(clip, np.random.default_rng(0))
    size = (135, 90)
    np.testing.assert_array_equal(
        result.frames[1], cv2.resize(clip.frames[1], size, interpolation=cv2.INTER_LINEAR)
    )
    np.testing.assert_array_equal(
        result.labels[1], cv2.resize(clip.labels[1], size, interpolation=cv2.INTER_NEAREST)
    )


def test_labels_follow_their_pixels_through_the_geometry():
    clip = make_clip(block=15)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        result = clip
        for step in (RandomResize((90, 60), (1.0, 2.0)), RandomCrop((48, 48)), RandomFlip()):
            result = step(result, rng)
        for frame, label in zip(result.frames, result.labels, strict=True):
            wrong = np.abs(frame[..., 0].astype(int) - 20 * label) > 10
            assert wrong.mean() < 0.12  # block borders: bilinear against nearest


def test_crop_takes_the_same_box_of_every_frame():
    clip = make_clip()
    tagged = Clip([frame.copy() for frame in clip.frames], clip.labels)
    for frame in tagged.frames:
        frame[..., 1] = np.arange(90)
        frame[..., 2] = np.arange(60)[:, None]
    boxes = set()
    for seed in range(30):
        result = RandomCrop((20, 30))(tagged, np.random.default_rng(seed))
        corners = {(int(f[0, 0, 2]), int(f[0, 0, 1])) for f in result.frames}
        assert len(corners) == 1
        assert {f.shape for f in result.frames} == {(20, 30, 3)}
        assert {m.shape for m in result.labels} == {(20, 30)}
        boxes |= corners
    assert len(boxes) > 20


def test_crop_takes_short_sides_whole():
    result = RandomCrop((100, 40))(make_clip(), np.random.default_rng(0))
    assert result.frames[0].shape == (60, 40, 3)
    assert result.labels[0].shape == (60, 40)


class CountingGenerator:
    """A generator that counts its draws."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.draws = 0

    def integers(self, *args):
        self.draws += 1
        return self.rng.integers(*args)


@pytest.mark.parametrize(
    ("target", "boxes"),
    [
        (np.zeros((60, 90), np.uint8), 11),  # one class: refused ten times, then unchecked
        (np.full((60, 90), 255, np.uint8), 11),  # nothing labelled
        (np.indices((60, 90)).sum(0).astype(np.uint8) % 2, 1),  # two halves: accepted at once
        ((np.indices((60, 90)).sum(0) % 4 == 0).astype(np.uint8), 11),  # 75 % is too much
        (np.where(np.indices((60, 90)).sum(0) % 4 == 0, 1, 255).astype(np.uint8), 11),
    ],
)
def test_crop_is_judged_on_the_last_frame(target, boxes):
    varied = make_clip(frames=1)
    clip = Clip([varied.frames[0]] * 2, [varied.labels[0], target])
    rng = CountingGenerator(0)
    RandomCrop((20, 20))(clip, rng)
    assert rng.draws == 2 * boxes


def test_void_pixels_do_not_count_in_the_share():
    """Of the labelled pixels one half is class 1, although 90 % of all are void."""
    pattern = np.indices((60, 90)).sum(0) % 20
    target = np.full((60, 90), 255, np.uint8)
    target[pattern == 0] = 1
    target[pattern == 10] = 2
    rng = CountingGenerator(0)
    RandomCrop((20, 20))(Clip([make_clip().frames[0]], [target]), rng)
    assert rng.draws == 2


def test_a_ratio_of_one_switches_the_check_off():
    rng = CountingGenerator(0)
    empty = Clip([make_clip().frames[0]], [np.zeros((60, 90), np.uint8)])
    RandomCrop((20, 20), max_category_ratio=1.0)(empty, rng)
    assert rng.draws == 2


def test_flip_mirrors_frames_and_labels_together():
    clip = make_clip()
    flipped = RandomFlip(prob=1.0)(clip, np.random.default_rng(0))
    for before, after in zip(clip.frames, flipped.frames, strict=True):
        np.testing.assert_array_equal(before[:, ::-1], after)
        assert after.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(clip.labels[2][:, ::-1], flipped.labels[2])
    untouched = RandomFlip(prob=0.0)(clip, np.random.default_rng(0))
    np.testing.assert_array_equal(untouched.frames[0], clip.frames[0])
    rng = np.random.default_rng(0)
    share = np.mean([RandomFlip()(clip, rng) is not clip for _ in range(1000)])
    assert 0.45 < share < 0.55


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (479, 639), (33, 31), (1080, 1920)])
def test_evaluation_resize_of_odd_sizes(size):
    result = TestResize((853, 480), 32)(np.zeros((*size, 3), np.uint8))
    assert result.dtype == np.uint8
    assert result.shape[0] % 32 == result.shape[1] % 32 == 0
    assert max(result.shape) <= 864


def test_evaluation_resize_is_two_bilinear_steps():
    image = make_clip(50, 70, 1).frames[0]
    first = cv2.resize(image, (76, 54), interpolation=cv2.INTER_LINEAR)
    second = cv2.resize(first, (96, 64), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(TestResize(scale=(76, 60), size_divisor=32)(image), second)
    same = TestResize(scale=(70, 50), size_divisor=1)(image)
    np.testing.assert_array_equal(same, image)


def test_lists_from_a_config_are_taken():
    pair = OmegaConf.create({"size": [96, 64], "range": [0.5, 1.5]})
    clip = RandomResize(pair.size, pair.range)(make_clip(), np.random.default_rng(0))
    clip = RandomCrop(pair.size)(clip, np.random.default_rng(0))
    assert clip.frames[0].shape[0] <= 96
    assert TestResize(pair.size)(clip.frames[0]).shape[1] % 32 == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomResize(scale=(0, 480)), "scale must be positive"),
        (lambda: RandomResize(ratio_range=(2.0, 0.5)), "low <= high"),
        (lambda: RandomCrop(size=(480,)), "two values"),
        (lambda: RandomFlip(prob=2), "prob"),
        (lambda: PhotoMetricDistortion(hue_delta=-1), "hue_delta"),
        (lambda: TestResize(size_divisor=0), "size_divisor"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_neutral_colour_settings_change_only_brightness():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)
    still = PhotoMetricDistortion(
        brightness_delta=0, contrast_range=(1, 1), saturation_range=(1, 1), hue_delta=0
    )
    for _ in range(20):
        out = still(Clip([frame], [frame[..., 0]]), rng).frames[0]
        # The way to HSV and back rounds by a few levels; a shift of hue would go much further.
        assert np.abs(out.astype(int) - frame).max() <= 4
