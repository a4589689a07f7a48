"""Names and signatures are the same on both backends."""

from __future__ import annotations

import importlib
import inspect

import pytest

from tests.d2.differential.differences import REASON, SIGNATURES
from tests.d2.test_backend import branches

pytest.importorskip("detectron2", reason=REASON)

FACADES = ("checkpoint", "config", "layers", "modeling", "solver", "structures", "utils")


def fetch(module, name):
    """What `from module import name` gives."""
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        return importlib.import_module(f"{module}.{name}")


def pairs():
    """(dotted name, detectron2's object, the embedded one) of each name of the facades."""
    for facade in FACADES:
        _, real, embedded = branches(facade)
        for name in sorted(real):
            theirs, mine = fetch(real[name], name), fetch(f"vss2.d2.{embedded[name]}", name)
            yield f"{facade}.{name}", theirs, mine


def parameters(function):
    """Names, kinds and defaults; annotations do not matter."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def own_members(owner):
    """Public functions that the embedded module or class defines itself."""
    names = owner.__all__ if inspect.ismodule(owner) else vars(owner)
    for name in names:
        member = inspect.getattr_static(owner, name)
        if isinstance(member, (staticmethod, classmethod)):
            member = getattr(owner, name)
        if (not name.startswith("_") or name == "__init__") and inspect.isroutine(member):
            yield name


@pytest.mark.parametrize(("dotted", "real", "mine"), list(pairs()), ids=lambda v: str(v)[:40])
def test_signatures_are_equal(dotted, real, mine):
    if mine is real:  # fvcore's or torch's own on both sides
        return
    assert type(mine) is type(real) or callable(mine) == callable(real)
    if inspect.isfunction(mine):
        assert parameters(mine) == parameters(real)
    if inspect.isclass(mine) or inspect.ismodule(mine):
        for name in own_members(mine):
            if f"{dotted}.{name}" in SIGNATURES:
                continue
            ours, theirs = getattr(mine, name), getattr(real, name)
            assert parameters(ours) == parameters(theirs), f"{dotted}.{name}"


def test_every_listed_signature_exists():
    known = {dotted: mine for dotted, _, mine in pairs()}
    for dotted in SIGNATURES:
        owner, _, member = dotted.rpartition(".")
        assert callable(getattr(known[owner], member))
