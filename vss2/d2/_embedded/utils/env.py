"""Seeding."""

from __future__ import annotations

import logging
import os
import random
import time

import numpy as np
import torch

__all__ = ["seed_all_rng"]


def seed_all_rng(seed: int | None = None) -> None:
    """Seed the generators of numpy, torch (CUDA too) and python.

    `PYTHONHASHSEED` is set as well, which reaches child processes only. Nothing is made
    deterministic beyond that.

    Args:
        seed: None takes a random one, and logs it.
    """
    if seed is None:
        entropy = os.getpid() + time.time_ns() + int.from_bytes(os.urandom(4), "big")
        seed = entropy % 2**31
        logging.getLogger(__name__).info("Using a generated random seed %d", seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)
