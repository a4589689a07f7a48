"""Going on after the GPU ran out of memory."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["retry_if_cuda_oom"]


@contextmanager
def _ignore_cuda_oom() -> Iterator[None]:
    """Swallow the error that the CUDA allocator raises when memory is out, and nothing else."""
    try:
        yield
    except RuntimeError as error:
        if "CUDA out of memory. " not in str(error):
            raise


def _to_cpu(value: Any) -> Any:
    on_cuda = isinstance(getattr(value, "device", None), torch.device) and (
        value.device.type == "cuda"
    )
    return value.to(device="cpu") if on_cuda and hasattr(value, "to") else value


def retry_if_cuda_oom(func: Callable[..., Any]) -> Callable[..., Any]:
    """Make `func` try again when CUDA memory is out: after emptying the cache, then on the CPU.

    On the CPU try, arguments that lie on a GPU are replaced by CPU copies, so the result may lie
    on the CPU too. `func` must be free of side effects.
    """

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _ignore_cuda_oom():
            return func(*args, **kwargs)
        torch.cuda.empty_cache()
        with _ignore_cuda_oom():
            return func(*args, **kwargs)
        logging.getLogger(__name__).info(
            "CUDA memory is out: copying the inputs of %s to CPU", func
        )
        cpu_args = [_to_cpu(value) for value in args]
        cpu_kwargs = {name: _to_cpu(value) for name, value in kwargs.items()}
        return func(*cpu_args, **cpu_kwargs)

    return wrapped
