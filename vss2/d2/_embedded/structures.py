"""Batches of images of different sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["ImageList"]


class ImageList:
    """Images of different sizes in one padded tensor, with their true sizes.

    Attributes:
        tensor: (N, H, W) or (N, ..., H, W), images in the top left corner.
        image_sizes: N pairs (height, width) before padding.
    """

    def __init__(self, tensor: torch.Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> torch.Tensor:
        """Image `idx` without its padding, (H, W) or (..., H, W); a view."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        """As `torch.Tensor.to`, on the padded tensor."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        """Where the tensor lies."""
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: list[torch.Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: Mapping[str, int] | None = None,
    ) -> ImageList:
        """Pad images at the right and at the bottom to one size.

        Args:
            tensors: each (..., H, W), all with the same leading dimensions.
            size_divisibility: the common size is the largest height and width, rounded up to a
                multiple of this where it is above 1.
            pad_value: of the padding.
            padding_constraints: `"size_divisibility"` replaces the argument above, and a
                `"square_size"` above 0 makes all images this high and wide. As a backbone's
                `padding_constraints` say it.

        Raises:
            AssertionError: no tensors, or leading dimensions that differ.
        """
        assert len(tensors) > 0, "from_tensors needs at least one tensor."
        leading = tensors[0].shape[:-2]
        for tensor in tensors:
            assert tensor.shape[:-2] == leading, (
                f"All leading dimensions must be {tuple(leading)}; got {tuple(tensor.shape)}."
            )
        constraints = padding_constraints or {}
        sizes = [(int(t.shape[-2]), int(t.shape[-1])) for t in tensors]
        height, width = _common_size(
            sizes,
            constraints.get("size_divisibility", size_divisibility),
            constraints.get("square_size", 0),
        )
        if len(tensors) == 1:
            padding = [0, width - sizes[0][1], 0, height - sizes[0][0]]
            batch = F.pad(tensors[0], padding, value=pad_value).unsqueeze(0)
        else:
            batch = tensors[0].new_full((len(tensors), *leading, height, width), pad_value)
            for image, tensor in zip(batch, tensors, strict=True):
                image[..., : tensor.shape[-2], : tensor.shape[-1]].copy_(tensor)
        return ImageList(batch.contiguous(), sizes)


def _common_size(
    sizes: Sequence[tuple[int, int]], divisor: int, square_size: int
) -> tuple[int, int]:
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    if square_size > 0:
        height = width = square_size
    if divisor > 1:
        height, width = -(-height // divisor) * divisor, -(-width // divisor) * divisor
    return height, width
