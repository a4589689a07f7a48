"""How maps are stored for the compiled kernel: row by row, in padded rows."""

from __future__ import annotations

import torch

LANES = 16  # columns are read in vectors of so many


def pitch(width: int) -> int:
    """Length of a stored row."""
    return -(-width // LANES) * LANES


def pack_rows(features: torch.Tensor) -> torch.Tensor:
    """A map [C, h, w] with the same values, stored row by row in padded rows.

    `local_correlation` reads maps that are stored so without copying them.
    """
    channels, height, width = features.shape
    packed = features.new_zeros((height, channels, pitch(width)))
    packed[..., :width] = features.transpose(0, 1)
    return packed[..., :width].transpose(0, 1)


def packed(features: torch.Tensor) -> torch.Tensor:
    """The map as `pack_rows` stores it; itself where it is stored so."""
    channels, height, width = features.shape
    row = pitch(width)
    end = features.storage_offset() + height * channels * row
    has_layout = features.stride() == (row, channels * row, 1)
    if has_layout and end * features.element_size() <= features.untyped_storage().nbytes():
        return features
    return pack_rows(features)
