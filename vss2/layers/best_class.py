"""The best class of every pixel from chunks of classes: C++ on CPUs that have a compiler, else
PyTorch."""

from __future__ import annotations

import ctypes
import functools

import torch

from .extension import CSRC, load_cpu_extension

NAME = "best_class_cpu"
SOURCES = (CSRC / "best_class_cpu.cpp",)


class BestClass:
    """The best score and its class of every pixel, of the classes seen so far.

    The lowest class wins among equals. NaN is not a score: what becomes of its pixel is undefined.
    """

    def __init__(self) -> None:
        self._best: torch.Tensor | None = None
        self._labels: torch.Tensor | None = None
        self._seen = 0

    def add(self, scores: torch.Tensor) -> None:
        """Take the scores [k, H, W] of the next k classes, of one floating type; at most 256."""
        library = _library() if scores.device.type == "cpu" else None
        if library is None or scores.dtype != torch.float32:
            self._add_in_torch(scores)
        else:
            self._add_compiled(library, scores)
        self._seen += len(scores)

    def labels(self) -> torch.Tensor:
        """uint8 [H, W]."""
        assert self._labels is not None
        return self._labels

    def _add_compiled(self, library: ctypes.CDLL, scores: torch.Tensor) -> None:
        if self._best is None or self._labels is None:
            self._best = scores.new_full(scores.shape[1:], float("-inf"))
            self._labels = torch.zeros(scores.shape[1:], dtype=torch.uint8)
        pixels = scores.permute(1, 2, 0).contiguous()  # as it is where channels lie side by side
        library.keep_best(
            pixels.data_ptr(),
            self._best.numel(),
            len(scores),
            self._seen,
            self._best.data_ptr(),
            self._labels.data_ptr(),
            torch.get_num_threads(),
        )

    def _add_in_torch(self, scores: torch.Tensor) -> None:
        value, index = scores.max(dim=0)
        index = index.to(torch.uint8) + self._seen
        if self._best is None or self._labels is None:
            self._best, self._labels = value, index
        else:
            self._labels = torch.where(value > self._best, index, self._labels)
            self._best = torch.maximum(self._best, value)


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = load_cpu_extension(NAME, SOURCES)
    if library is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        sizes = [number, number, number]
        library.keep_best.argtypes = [pointer, *sizes, pointer, pointer, ctypes.c_int]
        library.keep_best.restype = None
    return library
