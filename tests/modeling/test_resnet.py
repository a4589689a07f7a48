from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn

from vss2.errors import InputError
from vss2.modeling.backbone import ResNet
from vss2.modeling.backbone.resnet_checkpoint import (
    detectron2_names,
    is_resnet_file,
    published_resnet,
    torchvision_names,
)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms with statistics and scales that show whether they are applied."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            value.normal_(0.0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
    return model


def reference_maps(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    maps = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = layer(x)
        maps.append(x)
    return maps


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_equals_torchvision_with_its_weights(depth: int, norm: str) -> None:
    other = randomised(getattr(torchvision.models, f"resnet{depth}")()).eval()
    weights, ignored = published_resnet(other.state_dict())
    assert sorted(ignored) == ["fc.bias", "fc.weight"]
    model = ResNet(depth, norm=norm).eval()
    report = model.load_state_dict(weights, strict=False)
    assert not report.missing_keys
    assert all(name.endswith("num_batches_tracked") for name in report.unexpected_keys)
    assert bool(report.unexpected_keys) == (norm == "FrozenBN")
    x = torch.randn(1, 3, 65, 50)
    with torch.no_grad():
        maps = model(x)
        for index, expected in enumerate(reference_maps(other, x)):
            found = maps[f"stage{index + 1}"]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max())
            shape = model.output_shape()[f"stage{index + 1}"]
            assert found.shape[1] == shape.channels
            size = (math.ceil(65 / shape.stride), math.ceil(50 / shape.stride))
            assert found.shape[-2:] == size


def test_detectron2_names_and_back() -> None:
    state = ResNet(50, norm="FrozenBN").state_dict()
    theirs = detectron2_names(state)
    for name in (
        "stem.conv1.weight",
        "stem.conv1.norm.running_var",
        "res2.0.shortcut.weight",
        "res2.0.shortcut.norm.bias",
        "res5.2.conv3.norm.weight",
    ):
        assert name in theirs
    assert is_resnet_file(theirs)
    assert is_resnet_file(state)
    assert not is_resnet_file({"patch_embed1.proj.weight": None})
    back = torchvision_names(theirs)
    assert list(back) == list(state)
    assert all(back[name] is state[name] for name in state)


def test_three_stages_at_stride_8_with_reflecting_borders() -> None:
    model = ResNet(18, strides=(1, 2, 1), padding_mode="reflect").eval()
    assert "layer3" in model.stage_names
    assert not any(name.startswith("layer4") for name in model.state_dict())
    assert model.layer3[0].conv1.stride == model.layer3[0].downsample[0].stride == (1, 1)
    padded = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.padding != (0, 0)]
    assert {m.padding_mode for m in padded} == {"reflect"}
    maps = model(torch.randn(1, 3, 61, 90))
    assert list(maps) == ["stage1", "stage2", "stage3"]
    assert maps["stage3"].shape == (1, 256, 8, 12)


def test_biases_further_channels_and_names_of_stages() -> None:
    names = ("res2", "layer2", "layer3")
    model = ResNet(18, in_channels=5, strides=(1, 2, 2), conv_bias=True, stage_names=names)
    state = model.state_dict()
    assert state["conv1.weight"].shape == (64, 5, 7, 7)
    convs = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert all(f"{name}.bias" in state for name in convs)
    assert "res2.0.conv1.weight" in state
    assert model(torch.randn(2, 5, 32, 32))["stage3"].shape == (2, 256, 2, 2)


def test_blocks_can_start_as_their_shortcut() -> None:
    model = ResNet(18, zero_init_residual=True)
    assert not model.layer2[1].bn2.weight.any()
    assert model.layer2[1].bn1.weight.all()
    x = torch.rand(1, 128, 4, 4)
    torch.testing.assert_close(model.layer2[1](x), x)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_gradients_reach_every_parameter(norm: str) -> None:
    model = ResNet(18, norm=norm)
    sum(x.square().mean() for x in model(torch.randn(2, 3, 32, 32)).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    norms = [name for name, _ in model.named_parameters() if ".bn" in name or "bn1" in name]
    assert bool(norms) == (norm == "BN")


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InputError, match="not 20"):
        ResNet(20)
    with pytest.raises(InputError, match="'GN'"):
        ResNet(18, norm="GN")
    with pytest.raises(InputError, match="'circular'"):
        ResNet(18, padding_mode="circular")
    with pytest.raises(InputError, match=r"strides \[1, 2, 2, 2, 2\]"):
        ResNet(18, strides=(1, 2, 2, 2, 2))
