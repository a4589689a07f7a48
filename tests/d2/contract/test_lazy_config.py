"""LazyConfig: loading, relative imports, saving."""

from __future__ import annotations

import builtins
import logging
import pickle
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from fvcore.common.param_scheduler import ConstantParamScheduler
from omegaconf import DictConfig, ListConfig, OmegaConf

from vss2.d2 import BACKEND
from vss2.d2.config import LazyCall as L
from vss2.d2.config import LazyConfig, instantiate
from vss2.d2.solver import LRMultiplier

BASE = """
    from omegaconf import OmegaConf
    from vss2.d2.config import LazyCall as L

    model = dict(depth=2, parts=[1, 2])
    other = OmegaConf.create({"x": 1})
    items = OmegaConf.create([1, 2])
    plain_list = [1]
    number = 7
    _private = dict(a=1)

    def function():
        return 3
"""


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return str(path)


@pytest.fixture
def base(tmp_path):
    return write(tmp_path, "base.py", BASE)


@pytest.fixture(autouse=True)
def import_is_restored():
    before = builtins.__import__
    yield
    patched = builtins.__import__ is not before
    builtins.__import__ = before
    # detectron2 itself leaves its patch behind after a config that fails
    assert not patched or BACKEND == "detectron2"


def test_load_gives_public_dicts_and_configs(base):
    cfg = LazyConfig.load(base)
    assert isinstance(cfg, DictConfig)
    assert set(cfg) == {"model", "other", "items"}
    assert isinstance(cfg["items"], ListConfig)
    assert cfg._get_flag("allow_objects") is True


def test_load_by_keys(base):
    model = LazyConfig.load(base, "model")
    assert isinstance(model, DictConfig)
    assert model.depth == 2
    number, private = LazyConfig.load(base, ("number", "_private"))
    assert number == 7
    assert isinstance(private, DictConfig)
    assert LazyConfig.load(base, "plain_list") == [1]
    with pytest.raises(KeyError):
        LazyConfig.load(base, "absent")


def test_loads_are_independent(base):
    first, second = LazyConfig.load(base), LazyConfig.load(base)
    first.model.depth = 99
    assert second.model.depth == 2
    assert LazyConfig.load(base).model.depth == 2


def test_a_dot_folder_in_the_path_falls_away(tmp_path):
    path = write(tmp_path, "a.py", "shown = dict(file=__file__)")
    odd = path.replace("/a.py", "/./a.py")
    assert "/./" not in LazyConfig.load(odd).shown.file


def test_bad_files(tmp_path):
    with pytest.raises(ValueError):
        LazyConfig.load(write(tmp_path, "a.txt", "x = 1"))
    with pytest.raises(FileNotFoundError):
        LazyConfig.load(str(tmp_path / "absent.py"))
    with pytest.raises(SyntaxError, match=r"broken\.py"):
        LazyConfig.load(write(tmp_path, "broken.py", "x = = 1"))


def test_load_yaml(tmp_path):
    path = write(tmp_path, "a.yaml", "model: {depth: 2}\nlist: [1, 2]\npair: !!python/tuple [1, 2]")
    cfg = LazyConfig.load(path)
    assert cfg.model.depth == 2
    assert list(cfg.pair) == [1, 2]
    assert LazyConfig.load(path, "model").depth == 2
    assert LazyConfig.load(path, ("model", "list"))[1] == [1, 2]
    with pytest.raises(KeyError):
        LazyConfig.load(path, "absent")


def test_relative_imports_go_by_file_position(tmp_path, base):
    write(tmp_path, "sub/leaf.py", "leaf = dict(a=1)\nnumber = 3\nfrom ..base import model")
    user = write(
        tmp_path,
        "user.py",
        """
        from .base import model
        from .sub.leaf import leaf, number, model as through_leaf
        leaf.a += number
        kinds = dict(leaf=type(leaf).__name__, model=type(model).__name__)
        """,
    )
    cfg = LazyConfig.load(user)
    assert cfg.leaf.a == 4
    assert cfg.through_leaf.depth == 2
    assert cfg.kinds == {"leaf": "DictConfig", "model": "DictConfig"}


def test_relative_imports_run_the_file_anew(tmp_path, base):
    write(tmp_path, "one.py", "from .base import model\nmodel.depth = 50")
    user = write(tmp_path, "user.py", "from .one import model as one\nfrom .base import model")
    cfg = LazyConfig.load(user)
    assert cfg.one.depth == 50
    assert cfg.model.depth == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from . import base", "Relative import of directories"),
        ("from .folder import base", "Relative import of directories"),
        ("from .absent import base", "does not exist"),
    ],
)
def test_relative_imports_that_fail(tmp_path, base, line, message):
    write(tmp_path, "folder/leaf.py", "x = dict()")
    user = write(tmp_path, "user.py", line)
    with pytest.raises(ImportError, match=message):
        LazyConfig.load(user)


def test_absolute_imports_are_ordinary(tmp_path, monkeypatch):
    write(tmp_path, "vss2_contract_absolute.py", "shared = dict(a=1)")
    monkeypatch.syspath_prepend(str(tmp_path))
    user = write(
        tmp_path,
        "user.py",
        """
        from vss2_contract_absolute import shared
        shared["a"] += 1
        kind = dict(name=type(shared).__name__)
        """,
    )
    assert LazyConfig.load(user).kind.name == "dict"
    assert LazyConfig.load(user).shared.a == 3, "an absolute import shares its objects"


def test_a_failing_config_raises_its_own_error(tmp_path):
    with pytest.raises(ZeroDivisionError):
        LazyConfig.load(write(tmp_path, "user.py", "x = 1 / 0"))


def test_load_rel_is_relative_to_the_caller(tmp_path, base):
    write(tmp_path, "sub/data.py", "data = dict(a=1)")
    user = write(
        tmp_path,
        "user.py",
        """
        from vss2.d2.config import LazyConfig
        data = LazyConfig.load_rel("sub/data.py", "data")
        """,
    )
    assert LazyConfig.load(user).data.a == 1
    with pytest.raises((AssertionError, FileNotFoundError)):
        exec(compile("LazyConfig.load_rel('base.py')", "<string>", "exec"), globals())


def test_functions_of_a_config_cannot_be_pickled(base):
    function = LazyConfig.load(base, "function")
    assert function() == 3
    with pytest.raises((pickle.PicklingError, AttributeError, ImportError, TypeError)):
        pickle.dumps(function)


def test_save_writes_names_and_keeps_interpolations(tmp_path):
    cfg = OmegaConf.create(
        {
            "z": 1,
            "a": L(torch.optim.AdamW)(lr="${z}", betas=(0.9, 0.99)),
            "nested": [L(torch.nn.ReLU)()],
            "text": "ä",
        },
        flags={"allow_objects": True},
    )
    path = str(tmp_path / "config.yaml")
    LazyConfig.save(cfg, path)
    text = Path(path).read_text()
    assert "torch.optim.AdamW" in text
    assert "torch.optim.adamw" not in text
    assert "${z}" in text
    assert "ä" in text
    assert list(yaml.safe_load(text)) == ["a", "nested", "text", "z"]
    loaded = LazyConfig.load(path)
    assert loaded.a.lr == 1
    assert loaded.a.betas == [0.9, 0.99]
    assert isinstance(instantiate(loaded.nested[0]), torch.nn.ReLU)
    assert cfg.a._target_ is torch.optim.AdamW, "the config itself must not change"
    assert not Path(path + ".pkl").exists()


def test_save_of_what_yaml_cannot_hold_also_pickles(tmp_path, caplog):
    cfg = OmegaConf.create({"a": L(lambda x: x)(x=1)}, flags={"allow_objects": True})
    cfg.call = (lambda: 3,)
    path = str(tmp_path / "config.yaml")
    with caplog.at_level(logging.WARNING):
        LazyConfig.save(cfg, path)
    assert Path(path + ".pkl").exists()
    assert caplog.records
    restored = pickle.loads(Path(path + ".pkl").read_bytes())
    assert restored.call[0]() == 3


def test_saved_door_names_load_again(tmp_path):
    """A config that was saved with either backend names classes that this one finds."""
    for spelling in (
        "detectron2.solver.LRMultiplier",
        "detectron2.solver.lr_scheduler.LRMultiplier",
        "vss2.d2.solver.LRMultiplier",
    ):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        path = tmp_path / "one.yaml"
        path.write_text(f"schedule: {{_target_: {spelling}, max_iter: 4}}")
        node = LazyConfig.load(str(path)).schedule
        node.optimizer, node.multiplier = optimizer, ConstantParamScheduler(0.5)
        assert type(instantiate(node)) is LRMultiplier
