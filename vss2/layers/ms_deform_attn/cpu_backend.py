"""The op in C++ for the CPU (`csrc/ms_deform_attn_cpu.cpp`), compiled at first use."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from ..extension import CSRC, load_cpu_extension, missing_reason
from .problem import Levels

NAME = "ms_deform_attn_cpu"
SOURCES = (CSRC / "ms_deform_attn_cpu.cpp",)


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve tensors of `device` and `dtype`, or None."""
    if device.type != "cpu":
        return f"it computes on the CPU, and the tensors are on {device}"
    return missing_reason(NAME, SOURCES)


def forward(
    value: torch.Tensor, levels: Levels, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """[N, Q, M*D]; see `ms_deform_attn` for the arguments."""
    compute = locations.dtype
    batch, _, heads, channels = value.shape
    out = locations.new_empty(batch, locations.shape[1], heads * channels)
    arrays = [x.to(compute).contiguous() for x in (value, locations, weights)]
    _call("forward", value, levels, locations, [*arrays, out])
    return out.to(value.dtype)


def backward(
    grad: torch.Tensor,
    value: torch.Tensor,
    levels: Levels,
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of value, locations and weights."""
    arrays = [x.to(locations.dtype).contiguous() for x in (grad, value, locations, weights)]
    grads = [torch.zeros_like(arrays[1]), *map(torch.empty_like, arrays[2:])]
    _call("backward", value, levels, locations, [*arrays, *grads])
    return grads[0].to(value.dtype), grads[1], grads[2]


def _call(
    name: str,
    value: torch.Tensor,
    levels: Levels,
    locations: torch.Tensor,
    arrays: Sequence[torch.Tensor],
) -> None:
    library = load_cpu_extension(NAME, SOURCES)
    assert library is not None, "choose a backend before calling it"
    suffix = str(locations.dtype).removeprefix("torch.")
    function = getattr(library, f"vss2_msda_{name}_{suffix}")
    function(
        *level_arrays(value, levels, locations),
        *(ctypes.c_void_p(x.data_ptr()) for x in arrays),
        ctypes.c_int(torch.get_num_threads()),
    )


def level_arrays(
    value: torch.Tensor, levels: Levels, locations: torch.Tensor
) -> tuple[ctypes.Array, ctypes.Array, ctypes.Array]:
    """Sizes, shapes and starts as the compiled libraries take them."""
    queries, points = locations.shape[1], locations.shape[4]
    sizes = (*value.shape, len(levels.starts), queries, points)
    flat = [size for shape in levels.shapes for size in shape]
    return int64_array(sizes), int64_array(flat), int64_array(levels.starts)


def int64_array(numbers: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_int64 * len(numbers))(*numbers)
