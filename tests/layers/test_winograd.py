from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vss2.layers import winograd
from vss2.layers.winograd import WinogradConv2d, use_winograd


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (7, 9), (12, 17)])
@pytest.mark.parametrize("elements", [200, 2**20])
def test_equals_the_convolution(
    size: tuple[int, int], elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "ELEMENTS", elements)
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 6, 3, padding=1).double()
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    fast = WinogradConv2d(conv)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        assert (fast(given) - conv(given)).abs().max() < 1e-12


def test_single_precision() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 256, 3, padding=1)
    x = torch.randn(1, 256, 13, 22)
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    error = (WinogradConv2d(conv)(x) - exact).abs().max()
    assert error < 1e-5 * exact.abs().max()


def test_some_of_the_channels_without_bias() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(7, 4, 3, padding=1).double()
    x = torch.randn(1, 7, 6, 6, dtype=torch.float64)
    fast = WinogradConv2d(conv)
    parts = fast(x[:, :3]) + fast(x[:, 3:], first_channel=3, with_bias=False)
    assert (parts - conv(x)).abs().max() < 1e-12


def test_wide_plain_convolutions_are_replaced() -> None:
    module = nn.ModuleDict(
        {
            "wide": nn.Conv2d(256, 256, 3, padding=1),
            "narrow": nn.Conv2d(256, 8, 3, padding=1),
            "strided": nn.Conv2d(256, 256, 3, stride=2, padding=1),
            "pointwise": nn.Conv2d(256, 256, 1),
            "inner": nn.Sequential(nn.Conv2d(256, 512, 3, padding=1, bias=False)),
        }
    )
    use_winograd(module)
    kinds = [name for name, part in module.named_modules() if isinstance(part, WinogradConv2d)]
    assert kinds == ["wide", "inner.0"]
    assert module["inner"][0].bias is None
