"""Stochastic depth (Huang et al., Deep Networks with Stochastic Depth, ECCV 2016)."""

from __future__ import annotations

import torch
from torch import nn


class DropPath(nn.Module):
    """Drops a residual branch per sample with probability `rate` and rescales the others.

    Args:
        rate: probability in [0, 1) that a sample's branch is zeroed in training mode.

    Input and output: any float tensor whose dimension 0 counts samples. Identity in eval mode.
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"DropPath rate must lie in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * x.new_empty(shape).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"
