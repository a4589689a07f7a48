"""The op in Triton: GPUs without a CUDA compiler on the machine, of any vendor Triton serves."""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType

import torch

from .problem import Levels

TILE = 2048  # queries times channels of one program


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve tensors of `device` and `dtype`, or None."""
    if device.type not in ("cuda", "xpu"):
        return f"it computes on GPUs, and the tensors are on {device}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None


def forward(
    value: torch.Tensor, levels: Levels, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """[N, Q, M*D]; see `ms_deform_attn` for the arguments."""
    batch, _, heads, channels = value.shape
    out = value.new_empty(batch, locations.shape[1], heads * channels)
    arrays = [x.contiguous() for x in (value, locations, weights)]
    _launch(_kernels().forward_kernel, value, levels, locations, [*arrays, out])
    return out


def backward(
    grad: torch.Tensor,
    value: torch.Tensor,
    levels: Levels,
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of value, locations and weights; those of value by atomics, at least float32."""
    if torch.are_deterministic_algorithms_enabled():
        raise RuntimeError(
            "the Triton backend of ms_deform_attn has no deterministic backward pass; the CUDA "
            "backend has one (it needs nvcc)"
        )
    arrays = [x.contiguous() for x in (grad, value, locations, weights)]
    grad_value = torch.zeros_like(arrays[1], dtype=locations.dtype)
    grads = [grad_value, torch.empty_like(arrays[2]), torch.empty_like(arrays[3])]
    _launch(_kernels().backward_kernel, value, levels, locations, [*arrays, *grads])
    return grad_value.to(value.dtype), grads[1], grads[2]


def _launch(
    kernel: object,
    value: torch.Tensor,
    levels: Levels,
    locations: torch.Tensor,
    arrays: list[torch.Tensor],
) -> None:
    batch, tokens, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    block_d = 1 << (channels - 1).bit_length()
    block_q = max(TILE // block_d, 1)
    blocks = -(-queries // block_q)
    with torch.get_device_module(value.device).device(value.device):
        kernel[(blocks * batch * heads,)](  # type: ignore[index]
            *arrays,
            _level_tensor(levels, value.device),
            tokens,
            queries,
            heads,
            channels,
            blocks,
            LEVELS=len(levels.starts),
            POINTS=points,
            BLOCK_Q=block_q,
            BLOCK_D=block_d,
        )


@functools.lru_cache(maxsize=64)
def _level_tensor(levels: Levels, device: torch.device) -> torch.Tensor:
    """int32 [L, 3], (height, width, first token), kept: a copy to the device waits."""
    rows = [(*shape, start) for shape, start in zip(*levels, strict=True)]
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _kernels() -> ModuleType:
    from . import triton_kernels  # imports triton, which not every machine has

    return triton_kernels
