"""The Triton kernel: one program compares a tile of 4 x 4 queries with what it reaches of one map.

A candidate is one 64-bit number, its product in the high half so that numbers sort as products,
and its place in the low half so that of equal products the lower place comes first.
"""

from __future__ import annotations

import triton
import triton.language as tl

SIDE = 4  # cells to a side of a tile


@triton.jit
def packed_candidates(product, place):
    """int64 that sort as (product, -place)."""
    bits = product.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64)


@triton.jit
def best_kernel(
    query,
    key,
    best,
    channels,
    height,
    width,
    query_channel,
    query_row,
    key_channel,
    key_row,
    reach,
    radius_squared,
    first_place,
    SIDE: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Let the keys of one map enter `best`, int64 [h*w, KEEP], falling in every row.

    Args:
        query, key: float32, column stride 1.
        reach: rows and columns that a query reaches to each side.
        radius_squared: of allowed keys; negative allows all.
        first_place: place of the map's first key.
    """
    tiles_across = tl.cdiv(width, SIDE)
    top = tl.program_id(0) // tiles_across * SIDE
    left = tl.program_id(0) % tiles_across * SIDE
    cell = tl.arange(0, SIDE * SIDE)
    y, x = top + cell // SIDE, left + cell % SIDE
    valid = (y < height) & (x < width)
    kept = tl.arange(0, KEEP)
    where_best = best + ((y * width + x) * KEEP)[:, None] + kept[None, :]
    found = tl.load(where_best, mask=valid[:, None], other=-0x8000000000000000)
    channel = tl.arange(0, BLOCK_C)
    for row in range(tl.maximum(top - reach, 0), tl.minimum(top + SIDE + reach, height)):
        last = tl.minimum(left + SIDE + reach, width)
        for begin in range(tl.maximum(left - reach, 0), last, KEEP):
            column = begin + kept
            inside = column < last
            sums = tl.zeros((SIDE * SIDE, KEEP), dtype=tl.float32)
            for first in range(0, channels, BLOCK_C):
                c = first + channel
                q = tl.load(
                    query + (c * query_channel)[None, :] + (y * query_row + x)[:, None],
                    mask=valid[:, None] & (c < channels)[None, :],
                    other=0.0,
                )
                k = tl.load(
                    key + (c * key_channel)[:, None] + (row * key_row + column)[None, :],
                    mask=(c < channels)[:, None] & inside[None, :],
                    other=0.0,
                )
                sums = tl.dot(q, k, sums, input_precision="ieee")
            dy = (row - y)[:, None].to(tl.float32)
            dx = (column[None, :] - x[:, None]).to(tl.float32)
            near = (radius_squared < 0) | (dy * dy + dx * dx < radius_squared)
            place = (first_place + row * width + column)[None, :] + tl.zeros_like(sums).to(tl.int32)
            new = packed_candidates(sums, place)
            new = tl.where(near & inside[None, :], new, -0x8000000000000000)
            if tl.max((new > tl.min(found, axis=1)[:, None]).to(tl.int32)) > 0:
                both = tl.reshape(tl.join(found, new), (SIDE * SIDE, 2 * KEEP))
                both = tl.reshape(tl.sort(both, descending=True), (SIDE * SIDE, 2, KEEP))
                first_half = (tl.arange(0, 2) == 0)[None, :, None]
                found = tl.sum(tl.where(first_half, both, 0), axis=1)
    tl.store(where_best, found, mask=valid[:, None])
