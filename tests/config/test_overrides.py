"""Strict overrides: what they do to a config, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from omegaconf import DictConfig

from vss2.config import apply_overrides
from vss2.d2.config import LazyCall as L
from vss2.d2.config import instantiate
from vss2.errors import InputError


@pytest.fixture
def cfg() -> DictConfig:
    return DictConfig(
        {
            "train": {
                "max_iter": 100,
                "device": None,
                "output_dir": "./out",
                "amp": {"enabled": False, "dtype": "bf16"},
            },
            "optimizer": L(torch.optim.SGD)(lr=0.1, momentum="${..train.max_iter}"),
            "sizes": [480, 640],
            "base": "${train.max_iter}",
            "broken": "${nowhere}",
        },
        flags={"allow_objects": True},
    )


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.max_iter=7", "train.max_iter", 7),
        ("train.max_iter=1e3", "train.max_iter", 1000),
        ("train.max_iter=1_000", "train.max_iter", 1000),
        ("train.max_iter=-1", "train.max_iter", -1),
        ("train.device=cpu", "train.device", "cpu"),
        ("train.device=null", "train.device", None),
        ("train.output_dir=null", "train.output_dir", None),
        ("train.output_dir='a=b c'", "train.output_dir", "a=b c"),
        ("train.output_dir='None'", "train.output_dir", "None"),
        ("train.output_dir=", "train.output_dir", ""),
        ("train.amp.enabled=true", "train.amp.enabled", True),
        ("train.amp={enabled:true}", "train.amp", {"enabled": True, "dtype": "bf16"}),
        ("train.amp=null", "train.amp", None),
        ("sizes=[1,2,3]", "sizes", [1, 2, 3]),
        ("sizes.0=3", "sizes", [3, 640]),
        ("optimizer.lr=1e-3", "optimizer.lr", 0.001),
        ("base=3", "base", 3),
        ("broken=3", "broken", 3),
        ("base=${train.amp.dtype}", "base", "bf16"),
        ("+train.extra=1e3", "train.extra", 1000.0),
        ("+a.b.c=[1]", "a.b.c", [1]),
        ("++train.max_iter=3", "train.max_iter", 3),
        ("+train.amp={new:{deep:1}}", "train.amp.new.deep", 1),
    ],
)
def test_accepted(cfg: DictConfig, override: str, key: str, value: object) -> None:
    node = apply_overrides(cfg, [override])
    assert node is cfg
    for part in key.split("."):
        node = node[part]
    assert node == value
    if not isinstance(value, (dict, list)):
        assert type(node) is type(value)


def test_later_overrides_see_earlier_ones(cfg: DictConfig) -> None:
    apply_overrides(cfg, ["+train.new=1e2", "train.new=5", "~train.device"])
    assert cfg.train.new == 5
    assert "device" not in cfg.train


def test_float_stays_where_the_old_value_is_none_or_float(cfg: DictConfig) -> None:
    apply_overrides(cfg, ["train.device=1e3", "optimizer.lr=1e3", "train.max_iter=2.5"])
    assert type(cfg.train.device) is float
    assert type(cfg.optimizer.lr) is float
    assert cfg.train.max_iter == 2.5
    assert math.isnan(apply_overrides(cfg, ["train.max_iter=nan"]).train.max_iter)


def test_a_target_can_be_replaced_by_name(cfg: DictConfig) -> None:
    apply_overrides(cfg, ["optimizer._target_=builtins.dict"])
    assert instantiate(cfg.optimizer) == {"lr": 0.1, "momentum": 100}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_itr=1", r"no key 'train.max_itr'. Did you mean 'train.max_iter'.*\+train"),
        ("lr=1", r"Did you mean 'optimizer.lr'"),
        ("tarin.max_iter=1", r"no key 'tarin'"),
        ("train.amp={enable:true}", r"no key 'train.amp.enable'. Did you mean"),
        ("train.max_iter.x=1", r"'train.max_iter' is 100, it has no keys below it"),
        ("+train.max_iter.x=1", r"'train.max_iter' is 100"),
        ("train.device.x=1", r"'train.device' is None"),
        ("train.amp=3", r"'train.amp' is a group of keys \(enabled, dtype\)"),
        ("train.max_iter=None", r"write train.max_iter=null"),
        ("sizes.2=3", r"'sizes' is a list of 2 items, expected an index below 2"),
        ("+sizes.2=3", r"'sizes' is a list of 2 items"),
        ("~train.divice", r"no key 'train.divice'. Did you mean 'train.device'"),
        ("~train.device=3", r"without a value"),
        ("train.max_iter=1,2", r"several values; write a list as \[1,2\]"),
        ("train.max_iter=range(1,3)", r"several values"),
        ("train.max_iter 3", r"cannot read override 'train.max_iter 3'"),
        ("x=a=b", r"cannot read override 'x=a=b'.*quote"),
        ("justaword", r"cannot read override 'justaword'"),
    ],
)
def test_refused(cfg: DictConfig, override: str, message: str) -> None:
    before = cfg.copy()
    with pytest.raises(InputError, match=message) as caught:
        apply_overrides(cfg, [override])
    assert "\n" not in str(caught.value)
    assert cfg == before
