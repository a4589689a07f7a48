from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vss2.errors import InputError
from vss2.solver import PolyWarmup, get_param_groups


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"norm": nn.LayerNorm(2), "fc": nn.Linear(2, 2)})
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(2), "shared": self.backbone["fc"]})
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)


def test_the_longest_key_wins_then_the_alphabet() -> None:
    net = Net()
    names = {id(p): n for n, p in net.named_parameters()}
    rules = {"head": {"lr_mult": 10.0}, "norm": {"decay_mult": 0.0}}
    groups = get_param_groups(net, 1.0, 0.5, rules)
    found = {
        (g["lr"], g["weight_decay"]): sorted(names[id(p)] for p in g["params"]) for g in groups
    }
    assert found == {
        (1.0, 0.0): ["backbone.norm.bias", "backbone.norm.weight"],
        (1.0, 0.5): ["backbone.fc.bias", "backbone.fc.weight"],
        (10.0, 0.5): ["head.norm.bias", "head.norm.weight"],
    }


def test_an_unknown_multiplier_is_named() -> None:
    with pytest.raises(InputError, match="wd_mult"):
        get_param_groups(Net(), 1.0, 0.5, {"head": {"wd_mult": 2.0}})


def test_poly_warmup_multiplies_ramp_and_decay() -> None:
    schedule = PolyWarmup(max_iter=100, power=0.9, warmup_iters=10, warmup_ratio=0.1)
    for iteration in range(100):
        expected = (1 - iteration / 100) ** 0.9
        if iteration < 10:
            expected *= 1 - (1 - iteration / 10) * 0.9
        assert np.isclose(schedule(iteration / 100), expected, rtol=1e-12)


def test_warmup_must_be_shorter_than_the_run() -> None:
    with pytest.raises(InputError, match="warmup_iters"):
        PolyWarmup(max_iter=10, warmup_iters=10)
