"""Convolution with norm and activation, norms by name, and thin functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import interpolate

__all__ = [
    "Conv2d",
    "FrozenBatchNorm2d",
    "LayerNorm",
    "ShapeSpec",
    "cat",
    "cross_entropy",
    "get_norm",
    "interpolate",
]


@dataclass
class ShapeSpec:
    """What one module tells another about the shape of its output, as far as it knows."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class Conv2d(nn.Conv2d):
    """Convolution, then `norm`, then `activation`.

    Both are kept under these names, which are part of the keys of checkpoints.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """
        Args:
            args, kwargs: those of `torch.nn.Conv2d`, and
            norm: a module or None.
            activation: a callable or None.
        """
        norm = kwargs.pop("norm", None)
        activation = kwargs.pop("activation", None)
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, in_channels, H, W) to (N, out_channels, H', W')."""
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and fixed affine parameters, all of them buffers.

    Initialised to an identity: `running_var + eps` is 1.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, num_features, H, W); same shape and dtype out."""
        if x.requires_grad:
            # The gradient of F.batch_norm would need memory for the fixed parameters as well.
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace every (sync) batch norm in `module` by a frozen one with the same values.

        Returns:
            `module`, changed in place; or the new layer if `module` is a batch norm itself.
        """
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            frozen = cls(module.num_features, module.eps)
            if module.affine:
                frozen.weight.data = module.weight.data.clone().detach()
                frozen.bias.data = module.bias.data.clone().detach()
            if module.running_mean is not None and module.running_var is not None:
                frozen.running_mean.data = module.running_mean.data
                frozen.running_var.data = module.running_var.data
            return frozen
        for name, child in module.named_children():
            converted = cls.convert_frozen_batchnorm(child)
            if converted is not child:
                module.add_module(name, converted)
        return module


class LayerNorm(nn.Module):
    """Layer norm over the channels of (N, C, H, W), at each position."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (N, C, H, W); same shape out."""
        variance, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "LN": LayerNorm,
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """A norm layer for `out_channels` channels.

    Args:
        norm: "BN", "SyncBN", "FrozenBN", "GN" (32 groups) or "LN" (over channels), or a callable
            that takes the number of channels. None and "" give None.

    Raises:
        KeyError: another string.
    """
    if norm is None or norm == "":
        return None
    if isinstance(norm, str):
        norm = _NORMS[norm]
    return norm(out_channels)


def cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """`torch.cat` that does not copy a single tensor."""
    assert isinstance(tensors, (list, tuple)), f"cat needs a list or tuple, got {type(tensors)}."
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def cross_entropy(
    input: torch.Tensor, target: torch.Tensor, *, reduction: str = "mean", **kwargs: Any
) -> torch.Tensor:
    """`F.cross_entropy` that gives 0 with a gradient, not NaN, where the target is empty."""
    if target.numel() == 0 and reduction == "mean":
        return input.sum() * 0.0
    return F.cross_entropy(input, target, reduction=reduction, **kwargs)
