"""Frame metrics of video semantic segmentation from one joint histogram of labels and predictions.

Two published forms are computed from the same counts. The table form (mIoU, mAcc, aAcc, mDice) is
what the training repositories of CFFM (CVPR 2022) and MRCFA (ECCV 2022) print as their result; the
confusion-matrix form (mIoU_e, mAcc_e, aAcc_e, fwIoU) is that of the VSPW baseline (CVPR 2021).
The two mIoU differ by classes that are predicted but never present, and by undefined label ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vss2.data.labels import IGNORE_LABEL
from vss2.errors import InputError
from vss2.layers.label_maps import NUM_IDS

FRAME_METRICS = ("mIoU", "mAcc", "aAcc", "mDice", "mIoU_e", "mAcc_e", "aAcc_e", "fwIoU")


def to_id_map(values: Any, what: str) -> np.ndarray:
    """`values` as a contiguous uint8 map of ids.

    Args:
        values: (H, W) integer numpy array or torch tensor with values 0..255.
        what: how an error names the map, e.g. "label of video 'a', frame 3".

    Raises:
        InputError: not two-dimensional, empty, not of an integer type, or outside 0..255.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    ids = np.asarray(values)
    if ids.ndim != 2 or ids.size == 0:
        raise InputError(f"The {what} must be a map (H, W) of ids, got shape {ids.shape}.")
    if ids.dtype != np.uint8:
        if ids.dtype.kind not in "iu":
            raise InputError(f"The {what} must hold integer ids, got dtype {ids.dtype}.")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= NUM_IDS:
            wrong = low if low < 0 else high
            raise InputError(f"The {what} holds id {wrong}; ids of 0..255 were expected.")
        ids = ids.astype(np.uint8)
    return np.ascontiguousarray(ids)


def id_map_pair(
    truth: Any, result: Any, where: str, names: tuple[str, str] = ("annotation", "result")
) -> tuple[np.ndarray, np.ndarray]:
    """Annotation and result of one frame as maps of ids of one size; see `to_id_map`.

    Args:
        where: how an error names the frame.
        names: how it names the two maps.

    Raises:
        InputError: what `to_id_map` refuses, or sizes that differ.
    """
    truth = to_id_map(truth, f"{names[0]} of {where}")
    result = to_id_map(result, f"{names[1]} of {where}")
    if truth.shape != result.shape:
        raise InputError(
            f"The {names[1]} of {where} has size {result.shape[0]}x{result.shape[1]}, its "
            f"{names[0]} {truth.shape[0]}x{truth.shape[1]} (height x width); they must be equal."
        )
    return truth, result


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Element-wise quotient in float64, nan where the denominator is 0."""
    out = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=out, where=np.asarray(denominator) > 0)
    return out


def _nanmean(values: np.ndarray) -> float:
    """Mean of what is not nan; nan when nothing is left."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")


def class_scores(counts: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    """Per-class table scores.

    Args:
        counts: int64 (256, num_classes), pixels by label id (after reduction) and predicted id.

    Returns:
        "IoU", "Acc", "Dice": float64 (num_classes,), nan where a class has no pixels to divide by;
        "intersect", "area_label": int64 (num_classes,).

    As published, the class histogram's last bin is closed: label `num_classes` counts as the area
    of class `num_classes - 1`. Labels beyond that are in no class's area, yet their pixels enlarge
    the union of the class predicted there. Only 255 is left out altogether.
    """
    intersect = np.diagonal(counts[:num_classes]).copy()
    area_label = counts[:num_classes].sum(axis=1)
    if num_classes < IGNORE_LABEL:
        area_label[num_classes - 1] += counts[num_classes].sum()
    area_prediction = counts[:IGNORE_LABEL].sum(axis=0)
    area_sum = area_prediction + area_label
    return {
        "IoU": _ratio(intersect, area_sum - intersect),
        "Acc": _ratio(intersect, area_label),
        "Dice": _ratio(2 * intersect, area_sum),
        "intersect": intersect,
        "area_label": area_label,
    }


def table_scores(counts: np.ndarray, num_classes: int) -> dict[str, float]:
    """mIoU, mAcc, aAcc and mDice (fractions) in the published table form; see `class_scores`.

    A class that is never present but predicted somewhere has IoU 0 and counts in mIoU; a class
    absent from both is left out.
    """
    per_class = class_scores(counts, num_classes)
    return {
        "mIoU": _nanmean(per_class["IoU"]),
        "mAcc": _nanmean(per_class["Acc"]),
        "aAcc": float(_ratio(per_class["intersect"].sum(), per_class["area_label"].sum())),
        "mDice": _nanmean(per_class["Dice"]),
    }


def matrix_scores(counts: np.ndarray, num_classes: int) -> dict[str, float]:
    """mIoU_e, mAcc_e, aAcc_e and fwIoU (fractions) in the published confusion-matrix form.

    Labels outside 0..num_classes-1 are left out; classes without ground truth are left out of
    mIoU_e even when predicted. fwIoU (the papers' weighted IoU) weighs IoU by label frequency and
    is 0, not nan, without any valid pixel, as the published sum over no classes is.
    """
    matrix = counts[:num_classes]
    hit, label, prediction = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    iou = _ratio(hit, label + prediction - hit)
    present = label > 0
    total = label.sum()
    return {
        "mIoU_e": _nanmean(iou[present]),
        "mAcc_e": _nanmean(_ratio(hit, label)),
        "aAcc_e": float(_ratio(hit.sum(), total)),
        "fwIoU": float((label[present] / max(total, 1) * iou[present]).sum()),
    }


def frame_scores(counts: np.ndarray, num_classes: int) -> dict[str, float]:
    """All `FRAME_METRICS` (fractions) of int64 counts (256, num_classes)."""
    return {**table_scores(counts, num_classes), **matrix_scores(counts, num_classes)}
