"""Which backend computes: the best one that fits, or the one that `VSS2_MSDEFORM` names."""

from __future__ import annotations

import functools
import logging
import os
from types import ModuleType

import torch

from vss2.errors import InputError, did_you_mean

from . import cpu_backend, cuda_backend, torch_backend, triton_backend

logger = logging.getLogger(__name__)

# From the fastest on.
BACKENDS = {
    "cuda": cuda_backend,
    "triton": triton_backend,
    "cpu": cpu_backend,
    "torch": torch_backend,
}


def backend_name(device: torch.device | str, dtype: torch.dtype = torch.float32) -> str:
    """The backend that `ms_deform_attn` uses for `value` of this device and dtype.

    "cuda" (C++), "triton", "cpu" (C++) or "torch". Raises `InputError` if the environment variable
    VSS2_MSDEFORM names one that there is not or that cannot serve here.
    """
    device = torch.device(device)
    forced = os.environ.get("VSS2_MSDEFORM") or None
    if forced is None:
        name = next(n for n, b in BACKENDS.items() if b.missing(device, dtype) is None)
    else:
        name = _forced(forced, device, dtype)
    _announce(name, device.type, dtype)
    return name


def choose(device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The module of that backend, with `forward` and `backward`."""
    return BACKENDS[backend_name(device, dtype)]


def _forced(name: str, device: torch.device, dtype: torch.dtype) -> str:
    if name not in BACKENDS:
        raise InputError(
            f"VSS2_MSDEFORM is '{name}'; there are {', '.join(BACKENDS)}."
            f"{did_you_mean(name, BACKENDS)}"
        )
    reason = BACKENDS[name].missing(device, dtype)
    if reason is not None:
        raise InputError(f"VSS2_MSDEFORM={name} cannot be used for {dtype} on {device}: {reason}")
    return name


@functools.cache
def _announce(name: str, device_type: str, dtype: torch.dtype) -> None:
    kind = str(dtype).removeprefix("torch.")
    logger.info("ms_deform_attn on %s in %s: backend '%s'", device_type, kind, name)
