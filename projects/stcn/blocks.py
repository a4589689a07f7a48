"""Residual blocks without norm, and CBAM, the parts of STCN's fuser and decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vss2.layers.winograd import WinogradConv2d

CBAM_REDUCTION = 16


def add_shared(own: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Add maps [B, C, h, w] to those of every object of the same image, [B*O, C, h, w]."""
    if len(own) == len(shared):
        return own + shared
    return (own.unflatten(0, (len(shared), -1)) + shared[:, None]).flatten(0, 1)


class ResBlock(nn.Module):
    """relu, 3x3, relu, 3x3, and a shortcut, itself a 3x3 convolution where channels change."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.downsample = (
            None if in_channels == channels else nn.Conv2d(in_channels, channels, 3, padding=1)
        )
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, shared: torch.Tensor | None = None) -> torch.Tensor:
        """[B*O, C_in, h, w] to [B*O, C, h, w].

        Args:
            x: maps of each object.
            shared: [B, C_s, h, w], further channels of the input that all objects of an image
                share; what the convolutions make of them is computed once.
        """
        hidden = _shared_conv(self.conv1, F.relu(x), None if shared is None else F.relu(shared))
        if self.downsample is not None:
            x = _shared_conv(self.downsample, x, shared)
        return x + self.conv2(F.relu(hidden))


def _shared_conv(
    conv: nn.Conv2d | WinogradConv2d, x: torch.Tensor, shared: torch.Tensor | None
) -> torch.Tensor:
    """`conv` of x and the shared channels stacked."""
    if shared is None:
        return conv(x)
    if len(x) == len(shared):
        return conv(torch.cat([x, shared], dim=1))
    own = x.shape[1]
    if isinstance(conv, WinogradConv2d):
        return add_shared(conv(x), conv(shared, first_channel=own, with_bias=False))
    part = F.conv2d(x, conv.weight[:, :own], conv.bias, padding=conv.padding)
    return add_shared(part, F.conv2d(shared, conv.weight[:, own:], padding=conv.padding))


class ChannelGate(nn.Module):
    """One factor per channel, from the averages and the maxima over positions."""

    def __init__(self, channels: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels, channels // CBAM_REDUCTION),
            nn.ReLU(),
            nn.Linear(channels // CBAM_REDUCTION, channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))
        return x * gate.sigmoid()[:, :, None, None]


class _SpatialConv(nn.Module):
    """Holds the convolution of `SpatialGate` under its published name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class SpatialGate(nn.Module):
    """One factor per position, from the maximum and the average over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = _SpatialConv()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return x * self.spatial(both).sigmoid()


class CBAM(nn.Module):
    """Channel and spatial attention (Woo et al., CBAM, ECCV 2018), without its norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.ChannelGate = ChannelGate(channels)
        self.SpatialGate = SpatialGate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.SpatialGate(self.ChannelGate(x))
