"""The op in CUDA C++ (`csrc/ms_deform_attn_cuda.cu`), compiled for the device at first use."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator, Sequence

import torch

from ..extension import CSRC, load_cuda_extension, missing_reason
from .cpu_backend import level_arrays
from .problem import Levels

NAME = "ms_deform_attn_cuda"
SOURCES = (CSRC / "ms_deform_attn_cuda.cu",)
DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve tensors of `device` and `dtype`, or None."""
    if device.type != "cuda" or torch.version.cuda is None:
        return f"it computes on NVIDIA GPUs, and the tensors are on {device}"
    arch = torch.cuda.get_device_capability(device)
    return missing_reason(NAME, SOURCES, arch) or _unusable(device)


@functools.cache
def _unusable(device: torch.device) -> str | None:
    """What the CUDA runtime says if it cannot run the kernels here, as under an old driver."""
    library = _library(device)
    with _stream(device):
        code = library.vss2_msda_cuda_usable()
    return None if code == 0 else _describe(library, code)


def forward(
    value: torch.Tensor, levels: Levels, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """[N, Q, M*D]; see `ms_deform_attn` for the arguments."""
    batch, _, heads, channels = value.shape
    out = value.new_empty(batch, locations.shape[1], heads * channels)
    arrays = [x.contiguous() for x in (value, locations, weights)]
    _call("forward", value, levels, locations, [*arrays, out])
    return out


def backward(
    grad: torch.Tensor,
    value: torch.Tensor,
    levels: Levels,
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of value, locations and weights.

    Half gradients of value are summed in float32. The sums are made by atomics, whose order
    changes from run to run; under `torch.use_deterministic_algorithms` by sorting.
    """
    grad, value, locations, weights = (x.contiguous() for x in (grad, value, locations, weights))
    grad_value = torch.zeros_like(value, dtype=locations.dtype)
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    sort = torch.are_deterministic_algorithms_enabled()
    arrays = [grad, value, locations, weights, None if sort else grad_value]
    _call("backward", value, levels, locations, [*arrays, grad_locations, grad_weights])
    if sort:
        _gather(grad, value, levels, locations, weights, grad_value)
    return grad_value.to(value.dtype), grad_locations, grad_weights


def _gather(
    grad: torch.Tensor,
    value: torch.Tensor,
    levels: Levels,
    locations: torch.Tensor,
    weights: torch.Tensor,
    grad_value: torch.Tensor,
) -> None:
    """Fill `grad_value`: sort the corners of all points by pixel, then sum each pixel's list."""
    keys = torch.empty(weights.numel() * 4, dtype=torch.int64, device=value.device)
    _call("keys", value, levels, locations, [locations, keys])
    keys, order = keys.sort(stable=True)
    pixels = torch.arange(value.shape[:3].numel() + 1, device=value.device)
    begins = torch.searchsorted(keys, pixels)
    _call("gather", value, levels, locations, [grad, locations, weights, begins, order, grad_value])


def _call(
    name: str,
    value: torch.Tensor,
    levels: Levels,
    locations: torch.Tensor,
    arrays: Sequence[torch.Tensor | None],
) -> None:
    library = _library(value.device)
    with _stream(value.device) as stream:
        code = getattr(library, f"vss2_msda_cuda_{name}")(
            ctypes.c_int(DTYPES[value.dtype]),
            *level_arrays(value, levels, locations),
            *(ctypes.c_void_p(None if x is None else x.data_ptr()) for x in arrays),
            ctypes.c_void_p(stream),
        )
    if code != 0:
        reason = _describe(library, code)
        raise RuntimeError(f"ms_deform_attn {name} failed on {value.device}: {reason}")


def _describe(library: ctypes.CDLL, code: int) -> str:
    library.vss2_msda_cuda_error.restype = ctypes.c_char_p
    return library.vss2_msda_cuda_error(code).decode()


def _library(device: torch.device) -> ctypes.CDLL:
    library = load_cuda_extension(NAME, SOURCES, torch.cuda.get_device_capability(device))
    assert library is not None, "choose a backend before calling it"
    return library


@contextlib.contextmanager
def _stream(device: torch.device) -> Iterator[int]:
    with torch.cuda.device(device):
        yield torch.cuda.current_stream().cuda_stream
