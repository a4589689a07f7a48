"""Labels at full size without a map of scores at full size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from vss2.layers.best_class import BestClass

from .losses import resize_scores

# Classes resized together: wide enough for vector instructions over channels, small enough that
# a chunk of a 480p frame stays below the size from which allocators return memory at once.
CLASS_CHUNK = 16


def resized_labels(scores: torch.Tensor, *sizes: Sequence[int]) -> torch.Tensor:
    """The best class of every pixel after bilinear resizes to each of `sizes` in turn.

    Equals `resize_scores(...).argmax(0)`, the lowest class among equals: classes are resized in
    chunks and only the best score and its class so far are kept.

    Args:
        scores: float [1, K, h, w], K at most 256.
        sizes: (H, W); the last one is the answer's.

    Returns:
        uint8 [H, W].
    """
    return best_labels(_resized_chunks(scores, sizes))


def _resized_chunks(scores: torch.Tensor, sizes: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
    for first in range(0, scores.shape[1], CLASS_CHUNK):
        part = scores[:, first : first + CLASS_CHUNK].float()
        # Interpolation works on all channels of a pixel at once where they lie side by side.
        part = part.contiguous(memory_format=torch.channels_last)
        for size in sizes:
            part = resize_scores(part, size)
        yield part


def best_labels(chunks: Iterable[torch.Tensor]) -> torch.Tensor:
    """The best class of every pixel, uint8 [H, W]; the lowest class among equals.

    Args:
        chunks: scores [1, k, H, W] of some classes after the others.
    """
    best = BestClass()
    for part in chunks:
        best.add(part[0])
        del part  # before the next one is made
    return best.labels()
