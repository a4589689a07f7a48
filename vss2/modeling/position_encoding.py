"""Sine codes of positions in a map and in a clip; they depend on sizes alone and are cached.

Mask2Former (Cheng et al., CVPR 2022) takes them from DETR (Carion et al., ECCV 2020), appendix
A.4; the code of time is that of its video variant (Cheng et al., arXiv 2112.10764).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

TEMPERATURE = 10000.0
EPS = 1e-6


def _sine(count: int, channels: int) -> torch.Tensor:
    """Code of positions 1..count: float32 [count, channels], sines and cosines in turn."""
    position = torch.arange(1, count + 1, dtype=torch.float32) / (count + EPS) * (2.0 * math.pi)
    pairs = torch.div(torch.arange(channels), 2, rounding_mode="floor").float()
    angle = position[:, None] / TEMPERATURE ** (2.0 * pairs / channels)
    return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)


@lru_cache(maxsize=16)
def sine_position(height: int, width: int, channels: int, device: torch.device) -> torch.Tensor:
    """Codes of the pixels of a map, row-major: float32 [height*width, channels].

    The first half of the channels codes the row, the second half the column. Do not write into
    the result: it is shared.
    """
    # A table made under inference_mode could not serve a later training step.
    with torch.inference_mode(False), torch.device("cpu"):
        rows = _sine(height, channels // 2)[:, None].expand(-1, width, -1)
        columns = _sine(width, channels // 2)[None].expand(height, -1, -1)
        return torch.cat((rows, columns), dim=2).flatten(0, 1).to(device)


@lru_cache(maxsize=16)
def clip_sine_position(
    num_frames: int, height: int, width: int, channels: int, device: torch.device
) -> torch.Tensor:
    """Codes of the pixels of a clip: float32 [num_frames, height*width, channels].

    `sine_position` plus a code of the frame over all channels, which is not zero for one frame
    either. Do not write into the result: it is shared.
    """
    with torch.inference_mode(False), torch.device("cpu"):
        time = _sine(num_frames, channels)[:, None]
        space = sine_position(height, width, channels, torch.device("cpu"))
        return (space + time).to(device)
