from __future__ import annotations

import copy

import torch
from torch import nn

from vss2.layers.fold_norms import fold_norms
from vss2.layers.soft_aggregation import aggregate_log_odds, soft_aggregate
from vss2.modeling.backbone import ResNet


def test_a_folded_resnet_computes_the_same() -> None:
    torch.manual_seed(0)
    for depth, bias in ((18, True), (50, False)):
        model = ResNet(depth, strides=(1, 2), conv_bias=bias).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
        image = torch.randn(1, 3, 32, 48)
        folded = fold_norms(copy.deepcopy(model))
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        with torch.no_grad():
            for name, value in model(image).items():
                error = (folded(image)[name] - value).abs().max()
                assert error < 1e-4 * value.abs().max()
        assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_aggregation_is_a_distribution_with_the_background_first() -> None:
    prob = torch.tensor([[0.0, 1.0, 0.5, 0.9], [0.0, 0.0, 0.5, 0.9]])
    both = soft_aggregate(prob)
    assert both.shape == (3, 4)
    assert torch.allclose(both.sum(0), torch.ones(4))
    assert both.argmax(0)[:2].tolist() == [0, 1]
    assert torch.allclose(both[1, 2:], both[2, 2:])
    assert torch.isfinite(aggregate_log_odds(prob)).all()
    assert torch.allclose(soft_aggregate(prob.t(), dim=1).t(), both)
