from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest
from PIL import Image

from vss2.data.first_frame import check_object_mask, read_object_mask
from vss2.data.image_io import write_image, write_label
from vss2.data.vos_palette import DAVIS_PALETTE
from vss2.errors import InputError, InputFileError


def objects_mask(ids=(1, 3, 5), size=(60, 90)) -> np.ndarray:
    """Discs that touch each other."""
    mask = np.zeros(size, np.uint8)
    for k, value in enumerate(ids):
        cv2.circle(mask, (15 + 18 * k, 30 + 3 * k), 12, value, -1)
    return mask


def test_a_good_mask_is_read_as_it_is(tmp_path):
    path = tmp_path / "m.png"
    mask = objects_mask()
    write_label(path, mask, DAVIS_PALETTE)
    np.testing.assert_array_equal(read_object_mask(path, (60, 90), objects=[3, 1]), mask)
    write_label(path, 255 * (mask > 0).astype(np.uint8))
    assert set(np.unique(read_object_mask(path))) == {0, 255}


def test_masks_with_thin_parts_and_small_objects_are_good():
    mask = objects_mask()
    mask[30, :] = 2  # a rope over everything
    mask[5:7, 5:7] = 9  # four pixels of the background
    check_object_mask(mask, "m.png")


@pytest.mark.parametrize("interpolation", [cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA])
def test_smoothed_palette_masks_are_refused_with_the_cure(interpolation):
    """Five objects that would have been run as many more."""
    mask = objects_mask((12, 40, 80, 120, 200), (60, 110))
    small = cv2.resize(mask, (83, 47), interpolation=interpolation)
    found = len(np.unique(small)) - 1
    assert found > 20
    with pytest.raises(
        InputError, match=rf"m\.png has {found} ids, .* it was smoothed\. .*NEAREST"
    ):
        check_object_mask(small, "m.png")
    few = cv2.resize(objects_mask(), (71, 47), interpolation=interpolation)
    assert {2, 4} <= set(np.unique(few))
    with pytest.raises(InputError, match=r"2 of them \(2, 4\) lie only along the edges of others"):
        check_object_mask(few, "m.png")
    check_object_mask(cv2.resize(mask, (83, 47), interpolation=cv2.INTER_NEAREST), "m.png")


def test_one_id_along_an_edge_is_only_warned_about(caplog):
    mask = np.zeros((30, 30), np.uint8)
    mask[:, 15:] = 2
    mask[:, 15] = 1
    with caplog.at_level(logging.WARNING):
        check_object_mask(mask, "m.png")
    assert "id 1 lies only along the edge" in caplog.text


def test_too_many_objects_name_both_cures():
    mask = np.kron(np.arange(1, 26).reshape(5, 5), np.ones((6, 6))).astype(np.uint8)
    with pytest.raises(
        InputError, match=r"has 25 ids \(1, 2, .* and 13 more\), more than"
    ) as error:
        check_object_mask(mask, "m.png")
    assert "raise max_objects to 25" in str(error.value)
    check_object_mask(mask, "m.png", max_objects=25)


def test_sizes_must_agree():
    with pytest.raises(InputError, match=r"is 60x90, its frame 30x45: .*nearest pixel only"):
        check_object_mask(objects_mask(), "m.png", (30, 45))


def test_ids_that_never_appear_are_named_with_those_that_do():
    with pytest.raises(InputError, match=r"no pixel of object 2, 7; it has 1, 3, 5\. List"):
        check_object_mask(objects_mask(), "m.png", objects=[1, 2, 7])
    with pytest.raises(InputError, match="no pixel of object 1; it has none"):
        check_object_mask(np.zeros((9, 9), np.uint8), "m.png", objects=[1])


def test_colour_masks_are_refused_with_their_colours(tmp_path):
    path = tmp_path / "m.png"
    colours = np.array(DAVIS_PALETTE, np.uint8)[objects_mask()]
    write_image(path, colours)
    with pytest.raises(InputError, match=r"mode 'RGB'.*\(128, 128, 0\).*Give each colour an id"):
        read_object_mask(path)
    write_image(path, cv2.resize(colours, (71, 47), interpolation=cv2.INTER_CUBIC))
    with pytest.raises(InputError, match="more than 20 colours, so it was smoothed too"):
        read_object_mask(path)
    Image.fromarray(objects_mask()).convert("LA").save(path)
    with pytest.raises(InputError, match="mode 'LA'"):
        read_object_mask(path)
    with pytest.raises(InputFileError, match=r"none\.png"):
        read_object_mask(tmp_path / "none.png")
