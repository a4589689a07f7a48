"""LazyCall describes a call, instantiate makes it."""

from __future__ import annotations

import collections
import dataclasses
import logging

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, ValidationError

from vss2.d2.config import LazyCall as L
from vss2.d2.config import instantiate


@dataclasses.dataclass
class Box:
    width: int = 1
    height: int = 2


class Pair:
    def __init__(self, a, b=None):
        self.a, self.b = a, b


def takes_one(a):
    return ("took", a)


def plain(node: dict) -> DictConfig:
    return OmegaConf.create(node, flags={"allow_objects": True})


def test_lazy_call_holds_the_target_and_its_arguments():
    node = L(Pair)(a=1, b=(2, 3))
    assert isinstance(node, DictConfig)
    assert node._target_ is Pair
    assert isinstance(node.b, ListConfig)
    assert node._get_flag("allow_objects") is True
    assert node.a == 1


@pytest.mark.parametrize("target", [3, None, [Pair]])
def test_lazy_call_refuses_other_targets(target):
    with pytest.raises(TypeError):
        L(target)


def test_lazy_call_takes_keyword_arguments_only():
    with pytest.raises(TypeError):
        L(Pair)(1)


def test_lazy_call_of_a_dataclass_holds_its_name():
    node = L(Box)(width=3)
    assert isinstance(node._target_, str)
    assert node._target_.endswith(".Box")
    assert instantiate(node) == Box(3, 2)


def test_lazy_call_of_the_builtin_dict_needs_its_name():
    with pytest.raises(ValidationError):
        L(dict)(a=1)
    assert instantiate(L("builtins.dict")(a=1)) == {"a": 1}


@pytest.mark.parametrize(
    ("target", "kwargs", "expected"),
    [
        (list, {}, []),
        (collections.OrderedDict, {"a": 1}, collections.OrderedDict(a=1)),
        (int, {}, 0),
    ],
)
def test_builtins_and_containers_are_targets(target, kwargs, expected):
    made = instantiate(L(target)(**kwargs))
    assert made == expected
    assert type(made) is type(expected)


def test_a_lambda_and_a_mapping_are_targets():
    assert instantiate(L(lambda x: x + 1)(x=1)) == 2
    makes_a_callable = {"_target_": "functools.partial", "func": takes_one}
    with pytest.raises(TypeError):  # partial takes no keyword "func": the mapping is a call itself
        instantiate(L(makes_a_callable)(a=1))
    assert instantiate(L(L(lambda: takes_one)())(a=1)) == ("took", 1)


def test_nested_calls_are_made_inside_out():
    node = L(Pair)(a=L(Pair)(a=1), b=[L(Pair)(a=2), 5])
    made = instantiate(node)
    assert isinstance(made.a, Pair)
    assert made.a.a == 1
    assert made.b[0].a == 2
    assert made.b[1] == 5
    assert node.a._target_ is Pair, "the config itself must not change"


def test_string_targets_are_located():
    assert instantiate({"_target_": "collections.Counter", "a": 2}) == collections.Counter(a=2)
    with pytest.raises(ImportError):
        instantiate({"_target_": "collections.NoSuchThing"})
    with pytest.raises(ImportError):
        instantiate({"_target_": "no_such_module_anywhere.Thing"})


def test_lists_keep_their_kind():
    made = instantiate(plain({"parts": [L(Pair)(a=1), 2]}).parts)
    assert isinstance(made, ListConfig)
    assert made._get_flag("allow_objects") is True
    assert isinstance(made[0], Pair)
    made = instantiate([L(Pair)(a=1), 2])
    assert type(made) is list
    assert isinstance(made[0], Pair)


def test_structured_configs_become_their_dataclass():
    made = instantiate(OmegaConf.structured(Box(width=5)))
    assert made == Box(5, 2)
    assert type(made) is Box


@pytest.mark.parametrize("value", [None, 3, "text", (1, 2), {"a": 1}])
def test_other_values_come_back(value):
    assert instantiate(value) is value


def test_a_mapping_without_target_is_not_entered():
    node = plain({"inner": L(Pair)(a=1)})
    assert instantiate(node) is node
    held = instantiate(L(takes_one)(a={"inner": L(Pair)(a=1)}))
    assert OmegaConf.is_config(held[1].inner), "not instantiated below a plain dict"


def test_containers_reach_the_callable_as_configs():
    name, value = instantiate(L(takes_one)(a={"x": [1]}))
    assert name == "took"
    assert isinstance(value, DictConfig)
    assert isinstance(value.x, ListConfig)


def test_interpolations_go_through_the_parent():
    cfg = plain({"lr": 0.5, "c": L(Pair)(a="${..lr}", b="${lr}")})
    made = instantiate(cfg.c)
    assert (made.a, made.b) == (0.5, 0.5)


def test_missing_and_broken_values():
    with pytest.raises(MissingMandatoryValue):
        instantiate(L(Pair)(a="???"))
    with pytest.raises(InterpolationKeyError):
        instantiate(L(Pair)(a="${nowhere}"))


def test_a_target_that_cannot_be_called():
    with pytest.raises(AssertionError, match="does not define a callable"):
        instantiate({"_target_": "math.pi"})


def test_wrong_arguments_are_logged_with_the_name(caplog):
    with caplog.at_level(logging.ERROR), pytest.raises(TypeError):
        instantiate(L(Pair)(wrong=1))
    assert "Error when instantiating" in caplog.text
    assert "Pair!" in caplog.text


def test_hydra_keys_mean_nothing():
    with pytest.raises(TypeError):
        instantiate(L(Pair)(a=1, _partial_=True))
