"""Convolutions, norms and thin functions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vss2.d2.layers import (
    Conv2d,
    FrozenBatchNorm2d,
    ShapeSpec,
    cat,
    cross_entropy,
    get_norm,
    interpolate,
)


def test_shape_spec():
    spec = ShapeSpec(channels=3, stride=4)
    assert dataclasses.is_dataclass(spec)
    assert (spec.channels, spec.height, spec.width, spec.stride) == (3, None, None, 4)
    assert ShapeSpec() == ShapeSpec(None, None, None, None)
    assert ShapeSpec(1, 2, 3, 4).width == 3


def test_conv_then_norm_then_activation():
    torch.manual_seed(0)
    conv = Conv2d(3, 4, 3, padding=1, bias=False, norm=nn.BatchNorm2d(4), activation=F.relu)
    x = torch.randn(2, 3, 5, 6)
    expected = F.relu(conv.norm(F.conv2d(x, conv.weight, padding=1)))
    assert torch.allclose(conv(x), expected, atol=1e-6)
    assert set(conv.state_dict()) == {
        "weight",
        *(f"norm.{key}" for key in nn.BatchNorm2d(4).state_dict()),
    }
    plain = Conv2d(3, 4, 1, stride=2)
    assert plain.norm is None
    assert plain.activation is None
    assert torch.allclose(plain(x), F.conv2d(x, plain.weight, plain.bias, stride=2))


def test_norms_by_name():
    assert get_norm(None, 8) is None
    assert get_norm("", 8) is None
    assert isinstance(get_norm("BN", 8), nn.BatchNorm2d)
    assert isinstance(get_norm("SyncBN", 8), nn.SyncBatchNorm)
    assert isinstance(get_norm("FrozenBN", 8), FrozenBatchNorm2d)
    group = get_norm("GN", 64)
    assert (group.num_groups, group.num_channels) == (32, 64)
    custom = get_norm(lambda channels: nn.InstanceNorm2d(channels), 5)
    assert custom.num_features == 5
    with pytest.raises(ValueError):
        get_norm("GN", 33)
    with pytest.raises(KeyError):
        get_norm("NoSuchNorm", 8)


def test_layer_norm_is_over_channels():
    torch.manual_seed(0)
    norm = get_norm("LN", 6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 3, 4)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (6,), norm.weight, norm.bias, eps=1e-6)
    assert torch.allclose(norm(x), expected.permute(0, 3, 1, 2), atol=1e-5)
    assert set(norm.state_dict()) == {"weight", "bias"}


def trained_norm(kind=nn.BatchNorm2d):
    torch.manual_seed(0)
    norm = kind(4)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm.eval()


def test_frozen_batch_norm_starts_as_identity():
    norm = FrozenBatchNorm2d(4)
    assert {name for name, _ in norm.named_buffers()} == {
        "weight",
        "bias",
        "running_mean",
        "running_var",
    }
    assert list(norm.parameters()) == []
    assert torch.equal(norm.running_var, torch.ones(4) - norm.eps)
    x = torch.randn(2, 4, 3, 3)
    assert torch.allclose(norm(x), x, atol=1e-6)


def test_frozen_batch_norm_equals_batch_norm_in_eval_mode():
    norm = trained_norm()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    assert isinstance(frozen, FrozenBatchNorm2d)
    x = torch.randn(2, 4, 3, 3)
    expected = norm(x)
    assert torch.allclose(frozen.train()(x), expected, atol=1e-5)
    with_grad = x.clone().requires_grad_()
    out = frozen(with_grad)
    assert torch.allclose(out, expected, atol=1e-5)
    out.sum().backward()
    scale = frozen.weight / (frozen.running_var + frozen.eps).sqrt()
    assert torch.allclose(with_grad.grad[0, :, 0, 0], scale, atol=1e-6)


def test_conversion_reaches_nested_layers():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(trained_norm(), nn.ReLU()))
    x = torch.randn(1, 3, 2, 2)
    expected = net.eval()(x)
    converted = FrozenBatchNorm2d.convert_frozen_batchnorm(net)
    assert converted is net
    assert isinstance(net[1][0], FrozenBatchNorm2d)
    assert torch.allclose(net(x), expected, atol=1e-5)
    assert isinstance(
        FrozenBatchNorm2d.convert_frozen_batchnorm(nn.SyncBatchNorm(4)), FrozenBatchNorm2d
    )


def test_cat():
    a, b = torch.zeros(2, 3), torch.ones(2, 1)
    assert cat([a]) is a
    assert cat([a, b], dim=1).shape == (2, 4)
    assert cat((a, a)).shape == (4, 3)


def test_cross_entropy():
    torch.manual_seed(0)
    logits = torch.randn(5, 3, requires_grad=True)
    target = torch.tensor([0, 1, 2, 1, 0])
    assert torch.equal(cross_entropy(logits, target), F.cross_entropy(logits, target))
    assert cross_entropy(logits, target, reduction="none").shape == (5,)
    empty = cross_entropy(logits[:0], target[:0])
    assert float(empty.detach()) == 0.0
    empty.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    weighted = cross_entropy(logits, target, weight=torch.tensor([1.0, 2.0, 3.0]))
    assert torch.isfinite(weighted)


def test_interpolate():
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    got = interpolate(x, size=(4, 4), mode="bilinear", align_corners=False)
    assert torch.equal(got, F.interpolate(x, size=(4, 4), mode="bilinear", align_corners=False))
