"""Triton kernels: one program serves a block of queries of one head, as a tile [queries, channels].

What the four pixels of a point share is computed on vectors of queries; loads are masked, sums are
in the dtype of the locations.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _place(block_count, heads, queries, BLOCK_Q: tl.constexpr):
    """Batch, head, queries and rows (n, q, m) of this program."""
    program = tl.program_id(0)
    batch = (program // block_count // heads).to(tl.int64)
    head = program // block_count % heads
    query = program % block_count * BLOCK_Q + tl.arange(0, BLOCK_Q)
    return batch, head, query, (batch * queries + query) * heads + head


@triton.jit
def _point(locations, weights, at, valid, height, width):
    """Weight, fractions, upper left pixel and whether the point counts (not if it is NaN)."""
    x = tl.load(locations + 2 * at, mask=valid, other=-4.0) * width - 0.5
    y = tl.load(locations + 2 * at + 1, mask=valid, other=-4.0) * height - 0.5
    inside = (x > -1) & (y > -1) & (x < width) & (y < height)
    x = tl.where(inside, x, 0.0)
    y = tl.where(inside, y, 0.0)
    floor_x, floor_y = tl.floor(x), tl.floor(y)
    weight = tl.load(weights + at, mask=valid, other=0.0)
    return weight, x - floor_x, y - floor_y, floor_x.to(tl.int32), floor_y.to(tl.int32), inside


@triton.jit
def _corner(x0, y0, fx, fy, height, width, start, inside, dx: tl.constexpr, dy: tl.constexpr):
    """Token of a pixel, whether it is in the map, and its bilinear weights along x and y."""
    x, y = x0 + dx, y0 + dy
    valid = inside & (x >= 0) & (y >= 0) & (x < width) & (y < height)
    along_x = fx if dx else 1 - fx
    along_y = fy if dy else 1 - fy
    return (start + y * width + x).to(tl.int64), valid, along_x, along_y


@triton.jit
def forward_kernel(
    value,
    locations,
    weights,
    out,
    levels,
    tokens,
    queries,
    heads,
    channels,
    block_count,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    batch, head, query, row = _place(block_count, heads, queries, BLOCK_Q)
    channel = tl.arange(0, BLOCK_D)
    in_query, in_channel = query < queries, channel < channels
    maps = value + (batch * tokens * heads + head) * channels + channel[None, :]
    total = tl.zeros((BLOCK_Q, BLOCK_D), locations.dtype.element_ty)
    for level in range(LEVELS):
        height = tl.load(levels + 3 * level)
        width = tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in range(POINTS):
            at = (row * LEVELS + level) * POINTS + point
            weight, fx, fy, x0, y0, inside = _point(locations, weights, at, in_query, height, width)
            for corner in tl.static_range(4):
                token, valid, along_x, along_y = _corner(
                    x0, y0, fx, fy, height, width, start, inside, corner % 2, corner // 2
                )
                scale = weight * along_y * along_x
                where = maps + (token * heads * channels)[:, None]
                mask = valid[:, None] & in_channel[None, :]
                pixel = tl.load(where, mask=mask, other=0.0).to(total.dtype)
                total += tl.where(valid, scale, 0.0)[:, None] * pixel
    where = out + row[:, None] * channels + channel[None, :]
    mask = in_query[:, None] & in_channel[None, :]
    tl.store(where, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    grad_out,
    value,
    locations,
    weights,
    grad_value,
    grad_locations,
    grad_weights,
    levels,
    tokens,
    queries,
    heads,
    channels,
    block_count,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    batch, head, query, row = _place(block_count, heads, queries, BLOCK_Q)
    channel = tl.arange(0, BLOCK_D)
    in_query, in_channel = query < queries, channel < channels
    origin = (batch * tokens * heads + head) * channels + channel[None, :]
    compute: tl.constexpr = locations.dtype.element_ty
    mask = in_query[:, None] & in_channel[None, :]
    where = row[:, None] * channels + channel[None, :]
    grad = tl.load(grad_out + where, mask=mask, other=0.0).to(compute)
    for level in range(LEVELS):
        height = tl.load(levels + 3 * level)
        width = tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in range(POINTS):
            at = (row * LEVELS + level) * POINTS + point
            weight, fx, fy, x0, y0, inside = _point(locations, weights, at, in_query, height, width)
            grad_x = tl.zeros((BLOCK_Q,), compute)
            grad_y = tl.zeros((BLOCK_Q,), compute)
            grad_weight = tl.zeros((BLOCK_Q,), compute)
            for corner in tl.static_range(4):
                token, valid, along_x, along_y = _corner(
                    x0, y0, fx, fy, height, width, start, inside, corner % 2, corner // 2
                )
                where = origin + (token * heads * channels)[:, None]
                mask = valid[:, None] & in_channel[None, :]
                pixel = tl.load(value + where, mask=mask, other=0.0).to(compute)
                scale = (weight * along_y * along_x)[:, None]
                tl.atomic_add(grad_value + where, scale * grad, mask=mask, sem="relaxed")
                dot = tl.sum(pixel * grad, axis=1)
                grad_x += dot * along_y * (corner % 2 * 2 - 1)
                grad_y += dot * along_x * (corner // 2 * 2 - 1)
                grad_weight += dot * along_y * along_x
            tl.store(grad_locations + 2 * at, weight * width * grad_x, mask=in_query)
            tl.store(grad_locations + 2 * at + 1, weight * height * grad_y, mask=in_query)
            tl.store(grad_weights + at, grad_weight, mask=in_query)
