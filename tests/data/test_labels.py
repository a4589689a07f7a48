from __future__ import annotations

import numpy as np
import pytest

from vss2.data.labels import IGNORE_LABEL, reduce_labels, train_labels
from vss2.errors import InputError


def test_published_mapping():
    raw = np.array([[0, 1, 124], [125, 254, 255]], np.uint8)
    reduced = reduce_labels(raw)
    assert reduced.dtype == np.uint8
    assert reduced.tolist() == [[255, 0, 123], [124, 253, 255]]


def test_training_drops_stray_ids():
    raw = np.arange(256, dtype=np.uint8)
    train = train_labels(raw)
    assert train[1:125].tolist() == list(range(124))
    assert set(train[[0, *range(125, 256)]].tolist()) == {IGNORE_LABEL}
    assert train_labels(raw, num_classes=3).tolist() == [255, 0, 1, 2] + [255] * 252


def test_255_classes_leave_the_void_alone():
    train = train_labels(np.arange(256, dtype=np.uint8), num_classes=255)
    assert train.tolist() == [255, *range(254), 255]


def test_input_is_not_changed_and_wider_integers_pass():
    raw = np.array([0, 5], np.uint8)
    reduce_labels(raw)
    train_labels(raw)
    assert raw.tolist() == [0, 5]
    assert reduce_labels(np.array([0, 5], np.int64)).tolist() == [255, 4]


@pytest.mark.parametrize("raw", [np.array([256]), np.array([-1]), np.array([0.5])])
def test_values_that_are_no_raw_labels_are_refused(raw):
    with pytest.raises(InputError, match="Labels must be"):
        reduce_labels(raw)


@pytest.mark.parametrize("num_classes", [0, 256])
def test_class_counts_that_do_not_fit_are_refused(num_classes):
    with pytest.raises(InputError, match="num_classes"):
        train_labels(np.zeros(3, np.uint8), num_classes)
