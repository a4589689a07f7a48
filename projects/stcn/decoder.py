"""The decoder: what the memory says of an object, and features of the frame, to its mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import ResBlock, add_shared


class UpsampleBlock(nn.Module):
    """Bilinear to twice the size, plus the projected features of the frame; then a block."""

    def __init__(self, skip_channels: int, up_channels: int, channels: int):
        super().__init__()
        self.skip_conv = nn.Conv2d(skip_channels, up_channels, 3, padding=1)
        self.out_conv = ResBlock(up_channels, channels)

    def forward(self, skip: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """skip [B, C_s, 2h, 2w] and up [B*O, C_u, h, w] to [B*O, channels, 2h, 2w]."""
        up = F.interpolate(up, scale_factor=2, mode="bilinear", align_corners=False)
        return self.out_conv(add_shared(up, self.skip_conv(skip)))


class Decoder(nn.Module):
    """From stride 16 to the logits of each object at full size.

    Args:
        value_dim: channels of the readout and of the frame's own features beside it.
        f8_channels, f4_channels: of the key encoder's maps.
    """

    def __init__(self, value_dim: int, f8_channels: int, f4_channels: int):
        super().__init__()
        half = value_dim // 2
        self.compress = ResBlock(2 * value_dim, value_dim)
        self.up_16_8 = UpsampleBlock(f8_channels, value_dim, half)
        self.up_8_4 = UpsampleBlock(f4_channels, half, half)
        self.pred = nn.Conv2d(half, 1, 3, padding=1)

    def forward(
        self, readout: torch.Tensor, f16_thin: torch.Tensor, f8: torch.Tensor, f4: torch.Tensor
    ) -> torch.Tensor:
        """readout [B*O, value_dim, h, w] and maps of the B images to logits [B*O, 1, 16h, 16w]."""
        x = self.compress(readout, f16_thin)
        x = self.up_16_8(f8, x)
        x = self.up_8_4(f4, x)
        logits = self.pred(F.relu(x))
        return F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
