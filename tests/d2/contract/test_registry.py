"""Registries and dotted names."""

from __future__ import annotations

import pytest
import torch

from vss2.d2 import locate as locate_at_the_door
from vss2.d2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from vss2.d2.solver import LRMultiplier
from vss2.d2.utils import Registry, locate, registry


def test_register_as_decorator_and_as_call():
    things = Registry("THINGS")

    @things.register()
    class Thing:
        pass

    def other():
        return 1

    assert Thing is things.get("Thing"), "the decorator gives the object back"
    assert things.register(other) is None
    assert things.get("other") is other
    assert "Thing" in things
    assert "absent" not in things
    assert dict(things) == {"Thing": Thing, "other": other}
    assert "Thing" in repr(things)


def test_duplicates_and_unknown_names():
    things = Registry("THINGS")
    things.register(int)
    with pytest.raises(
        AssertionError, match=r"An object named 'int' was already registered in 'THINGS' registry!"
    ):
        things.register(int)
    with pytest.raises(KeyError, match=r"No object named 'B' found in 'THINGS' registry!"):
        things.get("B")


def test_model_registries_are_registries():
    names = set()
    for known in (META_ARCH_REGISTRY, BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY):
        assert isinstance(known, Registry)
        with pytest.raises(KeyError, match="registry") as error:
            known.get("NoSuchNetwork")
        names.add(str(error.value))
    assert len(names) == 3


def test_locate():
    assert locate("torch.optim.AdamW") is torch.optim.AdamW
    assert locate("builtins.dict") is dict
    assert locate("torch.nn.Module.state_dict") is torch.nn.Module.state_dict
    with pytest.raises(ImportError):
        locate("torch.optim.NoSuchOptimizer")
    with pytest.raises(ImportError):
        locate("no_such_module_anywhere.thing")


def test_targets_get_their_shortest_name():
    name_of = registry._convert_target_to_string
    assert name_of(torch.optim.AdamW) == "torch.optim.AdamW"
    assert name_of(torch.nn.Conv2d) == "torch.nn.Conv2d"
    assert name_of(torch.nn.Module.state_dict) == "torch.nn.Module.state_dict"
    local = type("Local", (), {})
    assert name_of(local).endswith(".Local")


@pytest.mark.parametrize(
    "name",
    [
        "vss2.d2.solver.LRMultiplier",
        "detectron2.solver.LRMultiplier",
        "detectron2.solver.lr_scheduler.LRMultiplier",
        "vss2.d2._embedded.solver.LRMultiplier",
    ],
)
def test_the_door_locates_every_spelling(name):
    assert locate_at_the_door(name) is LRMultiplier


def test_the_door_locates_everything_else_too():
    assert locate_at_the_door("torch.optim.AdamW") is torch.optim.AdamW
    for name in ("vss2.d2.solver.NoSuchThing", "torch.optim.NoSuchOptimizer"):
        with pytest.raises(ImportError):
            locate_at_the_door(name)
