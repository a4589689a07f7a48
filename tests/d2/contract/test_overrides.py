"""LazyConfig.apply_overrides: the grammar and what each form does."""

from __future__ import annotations

import math

import pytest
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from vss2.d2.config import LazyConfig


def config():
    return OmegaConf.create(
        {"a": {"b": 0}, "x": 0, "y": 5, "l": [1, 2, 3], "d": {"old": 1}, "s": "text"}
    )


def apply(*overrides):
    return LazyConfig.apply_overrides(config(), list(overrides))


def test_it_changes_the_config_in_place():
    cfg = config()
    assert LazyConfig.apply_overrides(cfg, ["a.b=1"]) is cfg
    assert cfg.a.b == 1


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_all_prefixes_set_and_create(prefix):
    assert apply(f"{prefix}a.b=1").a.b == 1
    assert apply(f"{prefix}a.new.deep=1").a.new.deep == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000.0),
        ("1_000", 1000),
        ("-1", -1),
        (".5", 0.5),
        ("null", None),
        ("None", "None"),
        ("true", True),
        ("yes", "yes"),
        ("0x10", "0x10"),
        ("'1'", "1"),
        ("str(1)", "1"),
        ("int(3.7)", 3),
        ("[a,'b c',1]", ["a", "b c", 1]),
        ("{a:1,b:{c:[2]}}", {"a": 1, "b": {"c": [2]}}),
        ("", ""),
        ("${y}", 5),
    ],
)
def test_values(text, value):
    got = apply(f"x={text}").x
    assert got == value
    if not OmegaConf.is_config(got):
        assert type(got) is type(value)


def test_nan_is_a_float():
    assert math.isnan(apply("x=nan").x)


def test_an_interpolation_stays_one():
    cfg = apply("x=${y}")
    assert OmegaConf.to_container(cfg, resolve=False)["x"] == "${y}"


def test_lists_are_replaced_and_dicts_merged():
    cfg = apply("l=[9]", "d={new:2}")
    assert cfg.l == [9]
    assert cfg.d == {"old": 1, "new": 2}
    assert apply("l.0=7").l == [7, 2, 3]


@pytest.mark.parametrize("text", ["l[0]=3", "x=a=b", "x=url?z=1", "x=(1,2)", "--x=1", "x 1"])
def test_what_is_not_in_the_grammar(text):
    with pytest.raises(OverrideParseException):
        apply(text)


@pytest.mark.parametrize("text", ["x=1,2", "x=range(1,3)"])
def test_sweeps_are_refused(text):
    with pytest.raises(ValidationError):
        apply(text)


def test_deletion_is_not_supported():
    with pytest.raises(NotImplementedError):
        apply("~a.b")


@pytest.mark.parametrize("text", ["y.c=1", "s.c=1", "a.b.c=1"])
def test_keys_do_not_go_on_below_a_value(text):
    with pytest.raises(KeyError, match="Trying to update key"):
        apply(text)
    with pytest.raises(KeyError, match="is not a config"):
        apply(text)
