"""local_correlation in C++ for the CPU, through `ctypes`."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch

from ..extension import CSRC, load_cpu_extension, missing_reason
from .packing import packed, pitch

NAME = "local_correlation_cpu"
SOURCES = (CSRC / "local_correlation_cpu.cpp",)


def missing(device: torch.device) -> str | None:
    """Why this backend cannot serve there; None if it can."""
    if device.type != "cpu":
        return f"it is for the CPU, the maps are on {device}"
    return missing_reason(NAME, SOURCES)


def forward(
    query: torch.Tensor,
    keys: Sequence[torch.Tensor],
    radii: Sequence[float],
    top_k: int,
    repeats: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `local_correlation`; radii may be infinite."""
    channels, height, width = query.shape
    stored, others = packed(query), [packed(key) for key in keys]
    values = torch.full((height * width, top_k), -torch.inf)
    index = torch.zeros((height * width, top_k), dtype=torch.int64)
    count = len(keys)
    _library().vss2_local_correlation(
        stored.data_ptr(),
        (ctypes.c_void_p * count)(*(key.data_ptr() for key in others)),
        (ctypes.c_double * count)(*radii),
        (ctypes.c_int64 * count)(*repeats),
        count,
        channels,
        height,
        width,
        pitch(width),
        top_k,
        values.data_ptr(),
        index.data_ptr(),
        torch.get_num_threads(),
    )
    return values, index


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_cpu_extension(NAME, SOURCES)
    assert library is not None, "missing says so first"
    pointers, sizes = [ctypes.c_void_p] * 4, [ctypes.c_int64] * 6
    library.vss2_local_correlation.argtypes = [
        *pointers,
        *sizes,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
    ]
    library.vss2_local_correlation.restype = None
    return library
