"""What the metrics ask of maps of ids: in C++ where a compiler is there, in NumPy elsewhere."""

from __future__ import annotations

import ctypes
import functools

import numpy as np

from .extension import CSRC, load_cpu_extension

NUM_IDS = 256
NAME = "label_maps_cpu"
SOURCES = (CSRC / "label_maps_cpu.cpp",)


def add_joint_histogram(labels: np.ndarray, predictions: np.ndarray, counts: np.ndarray) -> None:
    """Add the pixels of one frame to `counts`, in place.

    Args:
        labels, predictions: contiguous uint8 (H, W) of one size.
        counts: contiguous int64 (256, 256), [label id, predicted id].
    """
    library = _library()
    if library is None:
        add_joint_histogram_in_numpy(labels, predictions, counts)
    else:
        library.joint_histogram(
            labels.ctypes.data, predictions.ctypes.data, labels.size, counts.ctypes.data
        )


def equal_bits(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where two maps hold the same id, eight pixels a byte, lowest bit first.

    Args:
        one, other: contiguous uint8 (H, W) of one size.

    Returns:
        uint8 (ceil(H W / 8),); unused bits are 0.
    """
    library = _library()
    if library is None:
        return np.packbits(one == other, bitorder="little")
    bits = np.empty(-(-one.size // 8), np.uint8)
    library.equal_bits(one.ctypes.data, other.ctypes.data, one.size, bits.ctypes.data)
    return bits


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = load_cpu_extension(NAME, SOURCES)
    if library is not None:
        for function in (library.joint_histogram, library.equal_bits):
            pointer = ctypes.c_void_p
            function.argtypes = [pointer, pointer, ctypes.c_int64, pointer]
            function.restype = None
    return library


def add_joint_histogram_in_numpy(
    labels: np.ndarray, predictions: np.ndarray, counts: np.ndarray
) -> None:
    """`add_joint_histogram` without a compiler.

    Both maps are flat over large areas: runs of equal pixels are far fewer than pixels.
    """
    label, prediction = labels.ravel(), predictions.ravel()
    change = label[1:] != label[:-1]
    change |= prediction[1:] != prediction[:-1]
    ends = np.append(np.flatnonzero(change), label.size - 1)
    pairs = label[ends].astype(np.uint16) << 8 | prediction[ends]
    lengths = np.diff(ends, prepend=-1)
    # Exact in float64: sums of integers far below 2**53.
    added = np.bincount(pairs, lengths, minlength=NUM_IDS * NUM_IDS)
    counts += added.astype(np.int64).reshape(counts.shape)
