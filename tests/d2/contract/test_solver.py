"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

import pytest
import torch
from fvcore.common.param_scheduler import (
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    PolynomialDecayParamScheduler,
)
from torch import nn

from vss2.d2.solver import LRMultiplier, WarmupParamScheduler, get_default_optimizer_params


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.tied = self.conv
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.query = nn.Parameter(torch.zeros(2))


def by_name(net, groups):
    """Options of each trainable parameter, by its name."""
    names = {parameter: name for name, parameter in net.named_parameters()}
    found = {}
    for group in groups:
        options = {k: v for k, v in group.items() if k != "params"}
        for parameter in group["params"]:
            assert names[parameter] not in found, "each parameter once"
            found[names[parameter]] = options
    return found


def options(net, **kwargs):
    return by_name(net, get_default_optimizer_params(net, **kwargs))


ALL = {"conv.weight", "conv.bias", "norm.weight", "norm.bias", "query"}


def test_defaults():
    net = Net()
    groups = get_default_optimizer_params(net)
    assert len(groups) == 1, "equal groups are merged"
    assert by_name(net, groups) == {name: {} for name in ALL}
    found = options(net, base_lr=0.1, weight_decay=0.01)
    assert found == {name: {"lr": 0.1, "weight_decay": 0.01} for name in ALL}


def test_norms_and_biases():
    found = options(
        Net(),
        base_lr=0.1,
        weight_decay=0.01,
        weight_decay_norm=0.0,
        bias_lr_factor=2.0,
        weight_decay_bias=0.5,
    )
    assert found["conv.weight"] == {"lr": 0.1, "weight_decay": 0.01}
    assert found["norm.weight"] == {"lr": 0.1, "weight_decay": 0.0}
    assert found["conv.bias"] == found["norm.bias"] == {"lr": 0.2, "weight_decay": 0.5}


def test_lr_factor_sees_full_names_and_overrides_win():
    seen = []

    def factor(name):
        seen.append(name)
        return 0.1 if name.startswith("conv") else 1.0

    found = options(
        Net(), base_lr=1.0, lr_factor_func=factor, overrides={"weight": {"lr": 7.0}, "query": {}}
    )
    assert set(seen) == ALL
    assert found["conv.bias"]["lr"] == pytest.approx(0.1)
    assert found["conv.weight"]["lr"] == found["norm.weight"]["lr"] == 7.0
    assert found["query"]["lr"] == 1.0


def test_wrong_arguments():
    net = Net()
    with pytest.raises(ValueError):
        get_default_optimizer_params(net, bias_lr_factor=2.0)
    with pytest.raises(ValueError):
        get_default_optimizer_params(net, lr_factor_func=lambda name: 1.0)
    with pytest.raises(ValueError):
        get_default_optimizer_params(net, weight_decay_bias=0.0, overrides={"bias": {"lr": 1.0}})


def test_the_given_overrides_are_written_to():
    overrides = {}
    get_default_optimizer_params(Net(), weight_decay_bias=0.0, overrides=overrides)
    assert overrides == {"bias": {"weight_decay": 0.0}}


def test_groups_serve_an_optimizer():
    optimizer = torch.optim.AdamW(get_default_optimizer_params(Net(), 0.1, 0.01, 0.0))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


def optimizer(*rates):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": r} for r in rates])


def rates_of(schedule, steps, **kwargs):
    sgd = optimizer(1.0, 0.1)
    scheduler = LRMultiplier(sgd, schedule, **kwargs)
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in sgd.param_groups])
        sgd.step()
        scheduler.step()
    return rates


def test_lr_is_base_times_multiplier():
    schedule = CosineParamScheduler(1.0, 0.0)
    rates = rates_of(schedule, 10, max_iter=10)
    for iteration, (first, second) in enumerate(rates):
        assert first == pytest.approx(schedule(iteration / 10))
        assert second == pytest.approx(0.1 * schedule(iteration / 10))


def test_lr_equals_lambda_lr():
    schedule = PolynomialDecayParamScheduler(1.0, 0.9)
    sgd = optimizer(0.3)
    reference = torch.optim.lr_scheduler.LambdaLR(sgd, lambda i: schedule(i / 20))
    expected = []
    for _ in range(20):
        expected.append(sgd.param_groups[0]["lr"])
        sgd.step()
        reference.step()
    sgd = optimizer(0.3)
    scheduler = LRMultiplier(sgd, schedule, 20)
    found = []
    for _ in range(20):
        found.append(sgd.param_groups[0]["lr"])
        sgd.step()
        scheduler.step()
    assert found == expected


def test_lr_multiplier_state_and_resume():
    schedule = LinearParamScheduler(1.0, 0.0)
    full = rates_of(schedule, 10, max_iter=10)
    sgd = optimizer(1.0, 0.1)
    scheduler = LRMultiplier(sgd, schedule, max_iter=10)
    for _ in range(4):
        sgd.step()
        scheduler.step()
    assert scheduler.state_dict() == {"base_lrs": [1.0, 0.1], "last_epoch": 4}
    fresh = optimizer(1.0, 0.1)
    fresh.load_state_dict(sgd.state_dict())
    resumed = LRMultiplier(fresh, schedule, max_iter=10, last_iter=3)
    assert resumed.get_last_lr() == pytest.approx(full[4])
    restored = LRMultiplier(optimizer(1.0, 0.1), schedule, max_iter=10)
    restored.load_state_dict(scheduler.state_dict())
    assert restored.last_epoch == 4


def test_lr_multiplier_wants_a_schedule():
    with pytest.raises(ValueError):
        LRMultiplier(optimizer(1.0), lambda x: 1.0, max_iter=10)


def test_linear_warmup_meets_the_schedule():
    inner = PolynomialDecayParamScheduler(1.0, 1.0)
    schedule = WarmupParamScheduler(inner, 0.1, 0.2)
    assert schedule(0.0) == pytest.approx(0.1 * inner(0.0))
    assert schedule(0.1) == pytest.approx((0.1 * inner(0.0) + inner(0.2)) / 2)
    for where in (0.2, 0.5, 0.9):
        assert schedule(where) == pytest.approx(inner(where))


def test_constant_warmup():
    schedule = WarmupParamScheduler(ConstantParamScheduler(2.0), 0.25, 0.5, "constant")
    assert schedule(0.0) == schedule(0.49) == pytest.approx(0.5)
    assert schedule(0.5) == pytest.approx(2.0)


def test_rescaled_warmup_runs_the_whole_schedule_after_it():
    inner = MultiStepParamScheduler([1.0, 0.1], milestones=[5, 10])
    schedule = WarmupParamScheduler(inner, 0.0, 0.2, "linear", rescale_interval=True)
    assert schedule(0.1) == pytest.approx(0.5 * inner(0.0))
    assert schedule(0.59) == pytest.approx(1.0)
    assert schedule(0.61) == pytest.approx(0.1)


def test_unknown_warmup():
    with pytest.raises(ValueError):
        WarmupParamScheduler(ConstantParamScheduler(1.0), 0.1, 0.1, "sudden")
