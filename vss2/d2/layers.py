"""`detectron2.layers`: convolution with norm, norms by name, thin functions."""

from __future__ import annotations

from . import BACKEND

if BACKEND == "detectron2":
    from detectron2.layers import (
        Conv2d,
        FrozenBatchNorm2d,
        ShapeSpec,
        cat,
        cross_entropy,
        get_norm,
        interpolate,
    )
else:
    from ._embedded.layers import (
        Conv2d,
        FrozenBatchNorm2d,
        ShapeSpec,
        cat,
        cross_entropy,
        get_norm,
        interpolate,
    )

__all__ = [
    "Conv2d",
    "FrozenBatchNorm2d",
    "ShapeSpec",
    "cat",
    "cross_entropy",
    "get_norm",
    "interpolate",
]
