"""Multi-scale deformable attention in the published ways: the yardsticks of its speed.

In plain PyTorch: the samples of all levels are stacked, multiplied by the weights and summed. In
CUDA (`csrc/published_ms_deform_attn.cu`, float32): one thread for each number of the output,
gradients by atomics of single numbers and sums of one thread.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
import torch.nn.functional as F

from vss2.layers.extension import load_cuda_extension, missing_reason

NAME = "published_ms_deform_attn"
SOURCES = (Path(__file__).resolve().parent / "csrc" / f"{NAME}.cu",)


def reference(
    value: torch.Tensor,
    spatial_shapes: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """[N, Q, M*D]; arguments as `vss2.layers.ms_deform_attn.ms_deform_attn` has them."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    shapes = spatial_shapes.tolist()
    maps = value.split([height * width for height, width in shapes], dim=1)
    grids = 2 * locations - 1
    samples = []
    for level, (height, width) in enumerate(shapes):
        image = maps[level].flatten(2).transpose(1, 2)
        image = image.reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(image, grid, mode="bilinear", align_corners=False))
    scale = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    total = (torch.stack(samples, dim=-2).flatten(-2) * scale).sum(-1)
    return total.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


def missing(device: torch.device) -> str | None:
    """Why the CUDA yardstick cannot run, or None."""
    return missing_reason(NAME, SOURCES, torch.cuda.get_device_capability(device))


def library(device: torch.device) -> ctypes.CDLL:
    """The compiled CUDA yardstick."""
    loaded = load_cuda_extension(NAME, SOURCES, torch.cuda.get_device_capability(device))
    assert loaded is not None
    return loaded


def cuda_forward(
    kernels: ctypes.CDLL,
    value: torch.Tensor,
    spatial_shapes: torch.Tensor,
    level_start_index: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
    stream: int,
) -> torch.Tensor:
    """Output; all tensors contiguous and on the device, the level tables too."""
    batch, queries = locations.shape[:2]
    out = value.new_zeros(batch, queries, value.shape[2] * value.shape[3])
    tensors = (value, spatial_shapes, level_start_index, locations, weights, out)
    _call(kernels.published_forward, tensors, value, locations, stream)
    return out


def cuda_backward(
    kernels: ctypes.CDLL,
    grad: torch.Tensor,
    value: torch.Tensor,
    spatial_shapes: torch.Tensor,
    level_start_index: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
    stream: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of value, locations and weights; at most 1024 channels a head."""
    grads = (torch.zeros_like(value), torch.zeros_like(locations), torch.zeros_like(weights))
    tensors = (grad, value, spatial_shapes, level_start_index, locations, weights, *grads)
    _call(kernels.published_backward, tensors, value, locations, stream)
    return grads


def _call(
    function: object,
    tensors: tuple[torch.Tensor, ...],
    value: torch.Tensor,
    locations: torch.Tensor,
    stream: int,
) -> None:
    batch, queries, _, levels, points = locations.shape[:5]
    sizes = (batch, value.shape[1], value.shape[2], value.shape[3], levels, queries, points)
    code = function(  # type: ignore[operator]
        *(ctypes.c_void_p(x.data_ptr()) for x in tensors),
        *map(ctypes.c_int, sizes),
        ctypes.c_void_p(stream),
    )
    if code != 0:
        raise RuntimeError(f"the CUDA yardstick failed with code {code}")
