"""Pictures: pixel values, layout without overlaps, and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vss2.errors import InputError
from vss2.visualization import (
    bar_chart,
    contact_sheet,
    legend,
    overlay,
    palette,
    side_by_side,
)

COLORS = [(200, 0, 100), (0, 200, 0), (10, 20, 250)]
BLUE = (58, 116, 186)


def gray(height, width, value=100):
    return np.full((height, width, 3), value, np.uint8)


def pixels_of(image, color):
    return (image == np.array(color, np.uint8)).all(axis=2)


def test_palette_is_stable_and_distinct():
    colors = palette(256)
    assert len(set(colors)) == 256
    assert palette(256) == colors
    assert palette(20) == colors[:20]
    assert palette(0) == []
    first = np.array(colors[:30])
    apart = np.abs(first[:, None] - first[None]).sum(axis=2)
    assert apart[~np.eye(30, dtype=bool)].min() >= 60
    assert all(type(v) is int and 0 <= v <= 255 for color in colors for v in color)
    colors.clear()
    assert len(palette(3)) == 3
    with pytest.raises(InputError, match="257"):
        palette(257)


def test_overlay_blends_and_leaves_void_alone():
    frame = gray(2, 3)
    frame[0, 0] = (7, 8, 9)
    labels = np.array([[255, 0, 1], [2, 2, 255]])
    out = overlay(frame, labels, COLORS)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out[0, 0], (7, 8, 9))
    np.testing.assert_array_equal(out[1, 2], (100, 100, 100))
    np.testing.assert_array_equal(out[0, 1], (150, 50, 100))
    np.testing.assert_array_equal(out[1, 0], (55, 60, 175))
    assert (frame[0, 1] == 100).all(), "the frame is not written to"
    np.testing.assert_array_equal(overlay(frame, labels, COLORS, alpha=0), frame)
    np.testing.assert_array_equal(overlay(frame, labels, COLORS, alpha=1)[0, 2], COLORS[1])
    other = overlay(frame, np.zeros((2, 3), np.uint8), COLORS, ignore_label=0)
    np.testing.assert_array_equal(other, frame)
    all_void = overlay(frame, np.full((2, 3), 255, np.uint8), COLORS)
    np.testing.assert_array_equal(all_void, frame)


def test_contour_marks_both_sides_of_a_border_but_not_void():
    labels = np.zeros((5, 8), np.uint8)
    labels[:, 4:] = 1
    labels[:, 7] = 255
    out = overlay(gray(5, 8), labels, COLORS, contour=True)
    np.testing.assert_array_equal(out[2, 3], COLORS[0])
    np.testing.assert_array_equal(out[2, 4], COLORS[1])
    np.testing.assert_array_equal(out[2, 2], (150, 50, 100))
    np.testing.assert_array_equal(out[:, 7], np.full((5, 3), 100))


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("id 3, but there are 3 colours", (gray(2, 2), np.full((2, 2), 3), COLORS)),
        ("id -1", (gray(2, 2), np.full((2, 2), -1), COLORS)),
        (r"\(2, 3\).*\(2, 2\)", (gray(2, 2), np.zeros((2, 3), int), COLORS)),
        ("alpha", (gray(2, 2), np.zeros((2, 2), int), COLORS, 1.5)),
        ("uint8 image", (gray(2, 2).astype(float), np.zeros((2, 2), int), COLORS)),
        (r"list of \(r, g, b\)", (gray(2, 2), np.zeros((2, 2), int), [(1, 2)])),
        (r"list of \(r, g, b\)", (gray(2, 2), np.zeros((2, 2), int), [])),
        ("values 0..255", (gray(2, 2), np.zeros((2, 2), int), [(1, 2, 300)])),
    ],
)
def test_overlay_errors(message, arguments):
    with pytest.raises(InputError, match=message):
        overlay(*arguments)


def test_legend_lists_what_is_present_in_columns():
    names = ["sky", "a_class_with_a_long_name", "road"]
    image = legend(names, COLORS, width=600)
    assert image.shape[1] == 600
    assert all(pixels_of(image, color).any() for color in COLORS)
    some = legend(names, COLORS, present=np.array([[2, 2], [255, 0]]), width=600)
    assert pixels_of(some, COLORS[0]).any()
    assert pixels_of(some, COLORS[2]).any()
    assert not pixels_of(some, COLORS[1]).any()
    narrow = legend(names, COLORS, width=120)
    assert narrow.shape[0] > image.shape[0]
    assert (narrow[:, -8:] == 255).all(), "a long name is cut before the margin"
    assert (legend(names, COLORS, present=[]) == 255).all()
    with pytest.raises(InputError, match="2 class names and 3 colours"):
        legend(names[:2], COLORS)


def test_a_legend_of_many_classes_keeps_inside_its_margins():
    image = legend([f"class_number_{i}" for i in range(124)], palette(124), width=900)
    for edge in (image[:6], image[-6:], image[:, :6], image[:, -6:]):
        assert (edge == 255).all()


def test_side_by_side_scales_to_the_first_height():
    image = side_by_side(gray(20, 30), gray(40, 20, 50), gap=4)
    assert image.shape == (20, 30 + 4 + 10, 3)
    assert (image[:, :30] == 100).all()
    assert (image[:, 30:34] == 255).all()
    assert (image[:, 34:] == 50).all()
    with pytest.raises(InputError, match="at least one"):
        side_by_side()
    with pytest.raises(InputError, match="uint8 image"):
        side_by_side(np.zeros((4, 4), np.uint8))


def test_contact_sheet_places_every_image_with_its_margins():
    rows = [[gray(50, 100, 10), gray(50, 100, 20)], [gray(100, 100, 30)]]
    sheet = contact_sheet(rows, margin=8)
    assert sheet.shape == (8 + 50 + 8 + 100 + 8, 8 + 2 * 108, 3)
    assert (sheet[8:58, 8:108] == 10).all()
    assert (sheet[8:58, 116:216] == 20).all()
    assert (sheet[66:166, 8:108] == 30).all()
    for value, area in ((10, 5000), (20, 5000), (30, 10000)):
        assert pixels_of(sheet, (value,) * 3).sum() == area
    scaled = contact_sheet(rows, cell_width=200)
    assert pixels_of(scaled, (10,) * 3).sum() == 4 * 5000


def test_contact_sheet_titles_and_footer_do_not_cover_images():
    rows = [[gray(60, 100, 10), gray(60, 100, 20)], [gray(60, 100, 30), gray(60, 100, 40)]]
    footer = gray(15, 400, 77)
    sheet = contact_sheet(
        rows, ["frame", "two\nlines"], column_titles=["one", "two " * 40], footer=footer
    )
    for value in (10, 20, 30, 40):
        assert pixels_of(sheet, (value,) * 3).sum() == 6000
    assert pixels_of(sheet, (77,) * 3).sum() == footer.shape[0] * footer.shape[1]
    assert (sheet[-15:, :400] == 77).all()
    left = int(np.flatnonzero(pixels_of(sheet, (10,) * 3).any(axis=0))[0])
    assert (sheet[:, : left - 8] < 60).any(), "row titles at the left"
    assert (sheet[:, left - 6 : left][30:140] == 255).all(), "and a gap before the images"


@pytest.mark.parametrize(
    ("message", "arguments", "options"),
    [
        ("at least one image", ([[]],), {}),
        ("2 rows and 1 titles", ([[gray(9, 9)], [gray(9, 9)]], ["a"]), {}),
        ("1 columns and 2 titles", ([[gray(9, 9)]],), {"column_titles": ["a", "b"]}),
        ("image must be", ([[gray(9, 9)[..., 0]]],), {}),
    ],
)
def test_contact_sheet_errors(message, arguments, options):
    with pytest.raises(InputError, match=message):
        contact_sheet(*arguments, **options)


def bar_lengths(image):
    """Length of each bar from the top, pixels."""
    rows = pixels_of(image, BLUE).sum(axis=1)
    starts = np.flatnonzero((rows > 0) & (np.roll(rows, 1) == 0))
    return [int(rows[start]) for start in starts]


def test_bars_are_proportional_and_in_order():
    image = bar_chart(["a", "b", "c", "d"], [100, 25, math.nan, 50], "title", maximum=100)
    assert bar_lengths(image) == [400, 100, 200]
    assert bar_lengths(bar_chart(["a", "b"], [0.0, 0.5], maximum=1)) == [200]
    assert bar_lengths(bar_chart(["a", "b"], [30, 40])) == [300, 400]


def test_no_values_at_all_still_draw():
    image = bar_chart(["a", "b"], [math.nan, 0.0])
    assert bar_lengths(image) == []
    assert (image < 60).any()


def test_a_chart_of_124_classes_fits_a_screen():
    names = [f"a_long_class_name_or_another_{i}" for i in range(124)]
    image = bar_chart(names, np.linspace(0, 100, 124), "x" * 30, maximum=100)
    assert image.shape[0] < 1080
    assert image.shape[1] < 1920
    for edge in (image[:10], image[-6:], image[:, :10], image[:, -10:]):
        assert (edge == 255).all()


@pytest.mark.parametrize(
    ("message", "names", "values"),
    [
        ("2, 1 given", ["a", "b"], [1.0]),
        ("0, 0 given", [], []),
        ("'b' is -1", ["a", "b"], [1.0, -1.0]),
        ("'a' is inf", ["a"], [math.inf]),
    ],
)
def test_bar_chart_errors(message, names, values):
    with pytest.raises(InputError, match=message):
        bar_chart(names, values)
