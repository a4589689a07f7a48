"""Batch norm folded into the convolution before it, for inference."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_norms(module: nn.Module) -> nn.Module:
    """Replace convolutions by ones that hold the batch norm after them, in place.

    A pair is a convolution and the norm that follows it among its siblings, as in ResNets. The
    result computes the same up to rounding, with the statistics that the norms hold now.

    Args:
        module: in eval mode; not wanted for training any more.

    Returns:
        `module`.
    """
    children = list(module.named_children())
    for (name, first), (follower, second) in pairwise(children):
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
            with torch.no_grad():
                setattr(module, name, fuse_conv_bn_eval(first, second))
            setattr(module, follower, nn.Identity())
    for child in module.children():
        fold_norms(child)
    return module
