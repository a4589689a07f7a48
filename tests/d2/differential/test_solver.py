"""Parameter groups and learning-rate curves."""

from __future__ import annotations

import itertools

import pytest
import torch
from fvcore.common import param_scheduler as fv
from torch import nn

from tests.d2.differential.differences import REASON
from vss2.d2._embedded import solver as embedded

real = pytest.importorskip("detectron2.solver", reason=REASON)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
        self.head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Embedding(3, 4))
        self.tied = self.head[0]
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.query = nn.Parameter(torch.zeros(2))


def described(module, net, **kwargs):
    names = {parameter: name for name, parameter in net.named_parameters()}
    groups = module.get_default_optimizer_params(net, **kwargs)
    return [{**group, "params": [names[p] for p in group["params"]]} for group in groups]


@pytest.mark.parametrize(
    ("base_lr", "decay", "norm", "factor", "bias"),
    [
        case
        for case in itertools.product(
            [None, 0.1], [None, 0.01], [None, 0.0], [1.0, 2.0], [None, 0.5]
        )
        if case[0] is not None or case[3] == 1.0  # the rest is refused, see below
    ],
)
def test_groups(base_lr, decay, norm, factor, bias):
    net = Net()
    kwargs = {
        "base_lr": base_lr,
        "weight_decay": decay,
        "weight_decay_norm": norm,
        "bias_lr_factor": factor,
        "weight_decay_bias": bias,
    }
    ours, theirs = described(embedded, net, **kwargs), described(real, net, **kwargs)
    key = lambda group: sorted(group["params"])  # noqa: E731
    for side in (ours, theirs):
        for group in side:
            group["params"].sort()
    assert sorted(ours, key=key) == sorted(theirs, key=key)


def test_factors_and_overrides():
    sides = []
    for module in (embedded, real):
        sides.append(
            described(
                module,
                Net(),
                base_lr=1.0,
                weight_decay=0.1,
                lr_factor_func=lambda name: 0.1 if name.startswith("backbone") else 1.0,
                overrides={"query": {"weight_decay": 0.0}, "weight": {"lr": 3.0}},
            )
        )
    assert sides[0] == sides[1]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"bias_lr_factor": 2.0},
        {"lr_factor_func": lambda name: 1.0},
        {"weight_decay_bias": 0.0, "overrides": {"bias": {}}},
    ],
)
def test_refusals(kwargs):
    for module in (embedded, real):
        with pytest.raises(ValueError):
            module.get_default_optimizer_params(Net(), **kwargs)


def schedules(module):
    warm = module.WarmupParamScheduler
    poly = fv.PolynomialDecayParamScheduler(1.0, 0.9)
    steps = fv.MultiStepParamScheduler([1.0, 0.1, 0.01], milestones=[40, 70, 100])
    yield poly
    yield fv.CosineParamScheduler(1.0, 0.01)
    yield warm(poly, 1e-6, 0.1)
    yield warm(poly, 0.1, 0.3, "constant")
    yield warm(steps, 0.001, 0.15, "linear", True)
    yield warm(steps, 0.001, 0.15, "constant", True)
    yield warm(fv.LinearParamScheduler(1.0, 0.5), 0.5, 0.25, rescale_interval=False)


def curve(module, schedule, stop=100):
    sgd = torch.optim.SGD(
        [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    )
    scheduler = module.LRMultiplier(sgd, schedule, max_iter=100)
    rates = []
    for _ in range(stop):
        rates.append(tuple(group["lr"] for group in sgd.param_groups))
        sgd.step()
        scheduler.step()
    return rates, scheduler.state_dict(), sgd


def test_curves():
    for ours, theirs in zip(schedules(embedded), schedules(real), strict=True):
        mine, state, _ = curve(embedded, ours)
        other, other_state, _ = curve(real, theirs)
        assert mine == other
        assert state == other_state


@pytest.mark.parametrize(("writer", "reader"), [(embedded, real), (real, embedded)])
def test_a_schedule_goes_on_under_the_other_backend(writer, reader):
    schedule = fv.CosineParamScheduler(1.0, 0.0)
    whole, _, _ = curve(writer, schedule)
    _, _, sgd = curve(writer, schedule, stop=40)
    scheduler = reader.LRMultiplier(sgd, schedule, max_iter=100, last_iter=39)
    for expected in whole[40:]:
        assert tuple(group["lr"] for group in sgd.param_groups) == pytest.approx(expected)
        sgd.step()
        scheduler.step()
