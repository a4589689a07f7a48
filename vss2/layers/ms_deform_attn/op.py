"""Multi-scale deformable attention as one function, registered with `torch.library`.

Deformable DETR (Zhu et al., ICLR 2021), section 4.1, equation 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .choice import choose
from .problem import check_tensors, read_levels


def ms_deform_attn(
    value: torch.Tensor,
    spatial_shapes: torch.Tensor,
    level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """Weighted sum of bilinear samples of all levels.

    Differentiable once in `value`, `sampling_locations` and `attention_weights`. Locations and
    weights are taken in float32 (float64 with a float64 value), and sums are in that dtype too.
    `torch.compile`, `torch.export` and autocast see one op, `vss2::ms_deform_attn`. Which backend
    computes is said by `backend_name`.

    Args:
        value: [N, S, M, D], the tokens of all levels, each row by row, one after the other.
            float16, bfloat16, float32 or float64.
        spatial_shapes: int64 [L, 2], (height, width) of each level. Best on the CPU: a backend
            reads the numbers there, and waits for the GPU if it has to fetch them.
        level_start_index: int64 [L], first token of each level, likewise.
        sampling_locations: [N, Q, M, L, P, 2], (x, y); 0 to 1 spans a level from edge to edge.
            Outside the map there are zeros; a location that is NaN gives zero.
        attention_weights: [N, Q, M, L, P]. They need not sum to 1.

    Returns:
        [N, Q, M*D], dtype of `value`.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, or a level does not lie within
            the tokens.
    """
    check_tensors(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    compute = torch.promote_types(value.dtype, torch.float32)
    return _forward(
        value,
        spatial_shapes,
        level_start_index,
        sampling_locations.to(compute),
        attention_weights.to(compute),
    )


_INPUTS = (
    "Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, "
    "Tensor attention_weights"
)


@torch.library.custom_op("vss2::ms_deform_attn", mutates_args=(), schema=f"({_INPUTS}) -> Tensor")
def _forward(
    value: torch.Tensor,
    spatial_shapes: torch.Tensor,
    level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    levels = read_levels(spatial_shapes, level_start_index, value.shape[1])
    backend = choose(value.device, value.dtype)
    if value.numel() == 0 or attention_weights.numel() == 0:
        return _output_like(value, sampling_locations).zero_()
    return backend.forward(value, levels, sampling_locations, attention_weights)


@torch.library.custom_op(
    "vss2::ms_deform_attn_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    grad: torch.Tensor,
    value: torch.Tensor,
    spatial_shapes: torch.Tensor,
    level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    levels = read_levels(spatial_shapes, level_start_index, value.shape[1])
    backend = choose(value.device, value.dtype)
    if value.numel() == 0 or attention_weights.numel() == 0:
        return _grads_like(value, sampling_locations, attention_weights, torch.zeros_like)
    return backend.backward(grad, value, levels, sampling_locations, attention_weights)


@_forward.register_fake
def _(
    value: torch.Tensor,
    spatial_shapes: torch.Tensor,
    level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    return _output_like(value, sampling_locations)


@_backward.register_fake
def _(
    grad: torch.Tensor,
    value: torch.Tensor,
    spatial_shapes: torch.Tensor,
    level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _grads_like(value, sampling_locations, attention_weights, torch.empty_like)


def _output_like(value: torch.Tensor, locations: torch.Tensor) -> torch.Tensor:
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, locations.shape[1], heads * channels)


def _grads_like(
    value: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
    make: Callable[..., torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    kind = torch.contiguous_format
    return (
        make(value, memory_format=kind),
        make(locations, memory_format=kind),
        make(weights, memory_format=kind),
    )


def _save(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    grad_value, grad_locations, grad_weights = _backward(grad, *ctx.saved_tensors)
    return grad_value, None, None, grad_locations, grad_weights


_forward.register_autograd(_differentiate, setup_context=_save)
