"""Configs: the same text in, the same objects, errors and files out."""

from __future__ import annotations

import builtins
import textwrap
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.d2.differential.differences import REASON
from vss2.d2._embedded import config as embedded

real = pytest.importorskip("detectron2.config", reason=REASON)

OVERRIDES = [
    *("a.b=1", "+a.b=1", "++a.b=1", "a.new.deep=1", "+new=1"),
    *("x=1e3", "x=1_000", "x=-1", "x=.5", "x=null", "x=None", "x=true", "x=yes", "x=0x10"),
    *("x=[a,'b c',1]", "x={a:1,b:{c:[2]}}", "d={new:2}", "l=[9]", "l.0=7", "l[0]=3"),
    *("x='1'", "x=str(1)", "x=int(3.7)", "x=${y}", "x=", "x=a=b", "x=url?z=1", "x=(1,2)"),
    *("--x=1", "x 1", "x=1,2", "x=range(1,3)", "~a.b", "y.c=1", "s.c=1", "x=\\,", "x=a b"),
]
FILES = {
    "base.py": """
        from omegaconf import OmegaConf
        model = dict(depth=2, parts=[1, (2, 3)])
        other = OmegaConf.create({"x": "${y}", "y": 4})
        items = OmegaConf.create([1, 2])
        plain = [1]
        _private = dict(a=1)
        """,
    "user.py": """
        import torch
        from .base import model, other
        from .sub.leaf import leaf
        model.depth += leaf.a
        """,
    "sub/leaf.py": "from ..base import items\nleaf = dict(a=1)",
    "broken.py": "x = = 1",
    "absent_import.py": "from .nowhere import x",
    "folder_import.py": "from . import base",
    "folder_import2.py": "from .sub import leaf",
    "failing.py": "x = 1 / 0",
    "plain.yaml": "model: {depth: 2}\npair: !!python/tuple [1, 2]",
    "text.txt": "x = 1",
}


def attempt(function):
    """("ok", result) or ("error", type)."""
    try:
        return "ok", function()
    except Exception as error:
        return "error", type(error)


def overridden(module, text):
    cfg = OmegaConf.create(
        {"a": {"b": 0}, "x": 0, "y": 5, "l": [1, 2, 3], "d": {"old": 1}, "s": "text"}
    )
    module.LazyConfig.apply_overrides(cfg, [text])
    return OmegaConf.to_container(cfg, resolve=False)


@pytest.mark.parametrize("text", OVERRIDES)
def test_overrides(text):
    ours = attempt(lambda: overridden(embedded, text))
    theirs = attempt(lambda: overridden(real, text))
    assert ours == theirs
    if ours[0] == "ok":
        assert repr(ours[1]) == repr(theirs[1]), "1 and 1.0 are equal, but not the same"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(builtins, "__import__", builtins.__import__)  # put back afterwards
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return tmp_path


@pytest.mark.parametrize("name", [*FILES, "absent.py"])
def test_loading(folder, name):
    path = str(folder / name)
    results = []
    for module in (embedded, real):
        kind, value = attempt(lambda module=module: module.LazyConfig.load(path))
        results.append((kind, repr(value), OmegaConf.is_config(value)))
    assert results[0] == results[1]


@pytest.mark.parametrize("keys", ["model", "plain", ("plain", "_private"), "nothing"])
def test_loading_keys(folder, keys):
    path = str(folder / "base.py")
    ours = attempt(lambda: embedded.LazyConfig.load(path, keys))
    theirs = attempt(lambda: real.LazyConfig.load(path, keys))
    assert repr(ours) == repr(theirs)


def configs(module):
    call = module.LazyCall
    yield {"lr": 0.5, "optimizer": call(torch.optim.AdamW)(lr="${..lr}", betas=(0.9, 0.99))}
    yield {"net": call(torch.nn.Sequential)(), "parts": [call(torch.nn.ReLU)(inplace=True)]}
    yield {"missing": "???", "nothing": None, "text": "ä: #", "deep": {"a": {"b": [1, [2]]}}}
    yield {"d": call("builtins.dict")(a=1), "e": {}}
    yield {"f": call(torch.nn.functional.relu)(input=1), "g": call(torch.nn.Module.state_dict)()}


def test_saved_text(tmp_path):
    for index, (ours, theirs) in enumerate(zip(configs(embedded), configs(real), strict=True)):
        texts = []
        for name, module, node in (("ours", embedded, ours), ("theirs", real, theirs)):
            path = tmp_path / f"{name}{index}.yaml"
            cfg = OmegaConf.create(node, flags={"allow_objects": True})
            module.LazyConfig.save(cfg, str(path))
            texts.append((path.read_text(), Path(f"{path}.pkl").exists()))
        assert texts[0] == texts[1]


def test_what_one_saves_the_other_loads(tmp_path):
    for writer, reader in ((embedded, real), (real, embedded)):
        node = {"lr": 0.5, "layer": writer.LazyCall(torch.nn.Linear)(in_features=2, out_features=3)}
        path = str(tmp_path / f"{writer.__name__}.yaml")
        writer.LazyConfig.save(OmegaConf.create(node, flags={"allow_objects": True}), path)
        layer = reader.instantiate(reader.LazyConfig.load(path).layer)
        assert isinstance(layer, torch.nn.Linear)
        assert (layer.in_features, layer.out_features) == (2, 3)


def keep(**kwargs):
    return kwargs


@pytest.mark.parametrize(
    "build",
    [
        lambda L: L(keep)(a=1, b=[1, {"c": 2}]),
        lambda L: L(keep)(a=L(keep)(b=1), c=[L(keep)(d=2)]),
        lambda L: OmegaConf.create([L(keep)(a=1), 3], flags={"allow_objects": True}),
        lambda L: [L(keep)(a=1), 3],
        lambda L: {"inner": L(keep)(a=1)},
        lambda L: {"_target_": "collections.Counter", "a": 2},
        lambda L: {"_target_": "no.such.thing"},
        lambda L: {"_target_": "math.pi"},
        lambda L: L(keep)(a="???"),
        lambda L: L(keep)(a="${nowhere}"),
        lambda L: L(int)(wrong=1),
        lambda L: (1, 2),
        lambda L: None,
    ],
)
def test_instantiate(build):
    ours = attempt(lambda: embedded.instantiate(build(embedded.LazyCall)))
    theirs = attempt(lambda: real.instantiate(build(real.LazyCall)))
    assert repr(ours) == repr(theirs)
    assert type(ours[1]) is type(theirs[1])


@pytest.mark.parametrize("target", [keep, "builtins.dict", dict, 3, None])
def test_lazy_call(target):
    ours = attempt(lambda: embedded.LazyCall(target)(a=(1, 2)))
    theirs = attempt(lambda: real.LazyCall(target)(a=(1, 2)))
    assert ours == theirs
