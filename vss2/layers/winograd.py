"""3x3 convolutions with half of the multiplications, for inference on a processor.

Winograd's minimal filtering F(4, 3) along rows (Lavin and Gray, Fast Algorithms for Convolutional
Neural Networks, CVPR 2016, section 4): six products give four outputs that take twelve otherwise.
Libraries for GPUs do so themselves; that of processors, as PyTorch calls it, does not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

TILE = 4  # outputs of a tile
POINTS = 6  # inputs of a tile, and products
MIN_CHANNELS = 256  # below, the sums around the products cost more than these save
ELEMENTS = 2**20  # transformed inputs in work at once: they stay in a processor's cache


class WinogradConv2d(nn.Module):
    """Computes what a 3x3 convolution does, up to rounding.

    Args:
        conv: of stride 1 and padding 1, without groups; its weights are copied.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.register_buffer("weight", _kernels(conv.weight.detach()), False)
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach(), False)

    def forward(
        self, x: torch.Tensor, first_channel: int = 0, with_bias: bool = True
    ) -> torch.Tensor:
        """[N, C', H, W] to [N, K, H, W], channels last in memory.

        Args:
            x: all channels of the input, or those from `first_channel` on that there are.
            with_bias: whether the bias is added.
        """
        weight = self.weight[:, :, first_channel : first_channel + x.shape[1]]
        count, channels, height, width = x.shape
        tiles = -(-width // TILE)
        rows = max(1, ELEMENTS // (POINTS * tiles * channels) - 2)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, TILE * tiles - width + 1, 1, 1))
        out = x.new_empty(count, height, tiles, TILE, weight.shape[3])
        bias = self.bias if with_bias else None
        for image, result in zip(padded, out, strict=True):
            for top in range(0, height, rows):
                part = result[top : top + rows]
                _filter(image[top : top + len(part) + 2], weight, bias, part)
        return out.flatten(2, 3)[:, :, :width].permute(0, 3, 1, 2)


def _kernels(weight: torch.Tensor) -> torch.Tensor:
    """[K, C, 3, 3] to [3, 6, C, K]: rows of the kernel, products, channels in and out."""
    left, middle, right = weight.permute(3, 2, 1, 0).contiguous()  # [3, C, K] each
    both, far = left + right, left / 24 + right / 6
    points = (
        left / 4,
        (both + middle) / -6,
        (middle - both) / 6,
        far + middle / 12,
        far - middle / 12,
        right,
    )
    return torch.stack(points, dim=1)


def _filter(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    """Rows [R + 2, 4 * tiles + 2, C] to out [R, tiles, 4, K]."""
    rows, tiles = out.shape[:2]
    points = _transformed(x, tiles).flatten(1, 2)  # [6, (R + 2) * tiles, C]
    products: torch.Tensor | None = None
    for row, kernel in enumerate(weight):
        part = points[:, row * tiles : (row + rows) * tiles]
        products = torch.bmm(part, kernel) if products is None else products.baddbmm_(part, kernel)
    assert products is not None
    p = products.unflatten(1, (rows, tiles))
    even, odd = p[1] + p[2], p[1].sub_(p[2])
    even2, odd2 = p[3] + p[4], p[3].sub_(p[4])
    if bias is not None:
        even.add_(bias)
        odd.add_(bias)
    torch.add(p[0].add_(even), even2, out=out[:, :, 0])
    torch.add(odd, odd2, alpha=2, out=out[:, :, 1])
    torch.add(even, even2, alpha=4, out=out[:, :, 2])
    torch.add(odd.add_(p[5]), odd2, alpha=8, out=out[:, :, 3])


def _transformed(x: torch.Tensor, tiles: int) -> torch.Tensor:
    """Rows [R, 4 * tiles + 2, C] to the six sums of each tile: [6, R, tiles, C]."""
    end = TILE * tiles - TILE + 1
    s = [x[:, i : i + end : TILE] for i in range(POINTS)]
    out = x.new_empty(POINTS, x.shape[0], tiles, x.shape[2])
    even, odd = torch.sub(s[4], s[2], alpha=4), torch.sub(s[3], s[1], alpha=4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(s[4], s[2], out=even)
    torch.sub(s[3], s[1], out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.add(even, s[0] - s[2], alpha=4, out=out[0])
    torch.sub(s[5] - s[3], odd, alpha=4, out=out[5])
    return out


def use_winograd(module: nn.Module) -> nn.Module:
    """`module` with its wide 3x3 convolutions replaced by `WinogradConv2d`, in place."""
    if isinstance(module, nn.Conv2d) and _fits(module):
        return WinogradConv2d(module)
    for name, child in module.named_children():
        setattr(module, name, use_winograd(child))
    return module


def _fits(conv: nn.Conv2d) -> bool:
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS
    )
