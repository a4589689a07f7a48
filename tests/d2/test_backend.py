"""Which backend serves, and that the facades give the same names from either."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vss2.d2
from vss2.d2 import BACKEND, FACADES, backend_info, locate, portable_name

ROOT = Path(__file__).resolve().parents[2]
DOOR = Path(vss2.d2.__file__).parent

REPORT = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    {before}
    import vss2.d2
    {after}
print(json.dumps({{
    "backend": vss2.d2.BACKEND,
    "info": vss2.d2.backend_info(),
    "warnings": [str(w.message) for w in caught if "detectron2" in str(w.message)],
    "seen": sorted(name for name in sys.modules if name.split(".")[0] == "detectron2"),
}}))
"""
HIDE = 'sys.modules["detectron2"] = None'


def run(code, choice=None, path=()):
    env = {k: v for k, v in os.environ.items() if k != "VSS2_BACKEND"}
    env["PYTHONPATH"] = os.pathsep.join([*map(str, path), str(ROOT)])
    env["OMP_NUM_THREADS"] = "1"
    if choice is not None:
        env["VSS2_BACKEND"] = choice
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300
    )


def report(choice=None, path=(), before="pass", after="pass"):
    done = run(REPORT.format(before=before, after=after), choice, path)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def branches(facade):
    """`__all__` of a facade, and what its two branches import: {name: module} each."""
    tree = ast.parse((DOOR / f"{facade}.py").read_text())
    (switch,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(switch.test) == "BACKEND == 'detectron2'"
    sides = []
    for body in (switch.body, switch.orelse):
        assert all(isinstance(node, ast.ImportFrom) for node in body)
        sides.append({alias.name: node.module for node in body for alias in node.names})
        assert all(alias.asname is None for node in body for alias in node.names)
    (names,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return names, *sides


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A detectron2 whose compiled part does not fit."""
    folder = tmp_path_factory.mktemp("broken")
    package = folder / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '0.0'\n")
    (package / "checkpoint.py").write_text("raise OSError('undefined symbol: abi')\n")
    return folder


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A stand-in that has every module and name that the facades ask a detectron2 for."""
    folder = tmp_path_factory.mktemp("complete")
    contents: dict[str, set[str]] = {"detectron2": set()}
    for facade in FACADES:
        for name, module in branches(facade)[1].items():
            parts = module.split(".")
            for length in range(1, len(parts) + 1):
                contents.setdefault(".".join(parts[:length]), set())
            contents[module].add(name)
    for module in list(contents):
        for name in contents[module]:
            if f"{module}.{name}" in vss2.d2._PROBED_MODULES:
                contents.setdefault(f"{module}.{name}", set())
    for module, names in contents.items():
        package = folder.joinpath(*module.split("."))
        package.mkdir(parents=True, exist_ok=True)
        lines = [f"{name} = ('stand-in', {name!r})" for name in sorted(names)]
        submodules = [name for name in names if f"{module}.{name}" in contents]
        lines += [f"from . import {name}" for name in sorted(submodules)]
        if module == "detectron2":
            lines.append("__version__ = '9.9'")
        (package / "__init__.py").write_text("\n".join(lines) + "\n")
    return folder


def test_without_detectron2_the_embedded_one_serves_silently():
    found = report(before=HIDE)
    assert found["backend"] == found["info"]["name"] == "embedded"
    assert found["warnings"] == []
    assert found["info"]["path"] == str(DOOR / "_embedded")
    assert found["info"]["version"] == vss2.__version__


def test_a_broken_install_gives_one_warning(broken):
    found = report("auto", [broken], after="import vss2.d2.config")
    assert found["backend"] == "embedded"
    (warning,) = found["warnings"]
    assert "OSError: undefined symbol: abi" in warning


def test_a_broken_install_that_is_asked_for_fails(broken):
    done = run("import vss2.d2", "detectron2", [broken])
    assert done.returncode != 0
    assert "OSError: undefined symbol: abi" in done.stderr


def test_embedded_never_imports_detectron2(broken):
    found = report("embedded", [broken], after="import vss2.d2.config, vss2.d2.solver")
    assert (found["backend"], found["warnings"], found["seen"]) == ("embedded", [], [])


def test_detectron2_that_is_asked_for_but_absent_fails():
    done = run(f"import sys; {HIDE}; import vss2.d2", "detectron2")
    assert done.returncode != 0
    assert "ModuleNotFoundError" in done.stderr


def test_an_unknown_choice_is_an_input_error():
    done = run("import vss2.d2", "detectron3")
    assert done.returncode != 0
    assert "InputError: VSS2_BACKEND is 'detectron3'" in done.stderr


@pytest.mark.parametrize("choice", ["auto", "detectron2", None])
def test_a_working_detectron2_is_what_the_door_gives(complete, choice):
    check = "; ".join(f"import vss2.d2.{facade}" for facade in FACADES)
    found = report(choice, [complete], after=check)
    assert found["backend"] == "detectron2"
    assert found["info"]["version"] == "9.9"
    assert found["info"]["path"] == str(complete / "detectron2")
    assert found["warnings"] == []


def test_all_or_nothing(complete):
    """With detectron2 behind the door, no name of the embedded subset comes through it."""
    code = f"""
import importlib, sys, vss2.d2
for facade in {FACADES}:
    module = importlib.import_module("vss2.d2." + facade)
    for name in module.__all__:
        value = getattr(module, name)
        assert value == ("stand-in", name) or value.__name__.startswith("detectron2."), name
assert not any(name.startswith("vss2.d2._embedded") for name in sys.modules)
assert vss2.d2.locate("vss2.d2._embedded.solver.LRMultiplier") == ("stand-in", "LRMultiplier")
try:
    vss2.d2.locate("vss2.d2._embedded.solver._add_to_group")
except ImportError as error:
    assert "running backend is detectron2" in str(error)
else:
    raise AssertionError("a private name of the other backend was located")
"""
    done = run(code, "detectron2", [complete])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("facade", FACADES)
def test_both_branches_of_a_facade_give_exactly_all(facade):
    names, real, embedded = branches(facade)
    assert sorted(names) == sorted(real) == sorted(embedded)
    assert len(names) == len(set(names))
    module = importlib.import_module(f"vss2.d2.{facade}")
    public = {name for name in vars(module) if not name.startswith("_")}
    assert public - {"BACKEND", "annotations"} == set(names)
    assert getattr(vss2.d2, facade) is module


def test_the_probe_imports_what_the_facades_import():
    asked = set()
    for facade in FACADES:
        for name, module in branches(facade)[1].items():
            asked.add(module)
            if inspect.ismodule(getattr(getattr(vss2.d2, facade), name)):
                asked.add(f"{module}.{name}")
    assert set(vss2.d2._PROBED_MODULES) == asked


def test_backend_info():
    info = backend_info()
    assert set(info) == {"name", "version", "path"}
    assert info["name"] == BACKEND
    assert Path(info["path"]).is_dir()


@pytest.mark.parametrize(
    ("dotted", "portable"),
    [
        ("detectron2.config.LazyCall", "vss2.d2.config.LazyCall"),
        ("detectron2.config.instantiate.instantiate", "vss2.d2.config.instantiate"),
        ("detectron2.engine.launch.launch", "vss2.d2.engine.launch"),
        ("detectron2.engine.hooks.EvalHook", "vss2.d2.engine.hooks.EvalHook"),
        ("detectron2.utils.comm.get_rank", "vss2.d2.utils.comm.get_rank"),
        ("detectron2.utils.events.JSONWriter", "vss2.d2.utils.JSONWriter"),
        ("vss2.d2._embedded.solver.LRMultiplier", "vss2.d2.solver.LRMultiplier"),
        ("vss2.d2._embedded.layers.Conv2d.forward", "vss2.d2.layers.Conv2d.forward"),
        ("vss2.d2.solver.LRMultiplier", "vss2.d2.solver.LRMultiplier"),
        ("detectron2.modeling.GeneralizedRCNN", "detectron2.modeling.GeneralizedRCNN"),
        ("detectron2.model_zoo.get_config", "detectron2.model_zoo.get_config"),
        ("detectron2", "detectron2"),
        ("torch.optim.AdamW", "torch.optim.AdamW"),
    ],
)
def test_portable_names(dotted, portable):
    assert portable_name(dotted) == portable


@pytest.mark.parametrize("facade", FACADES)
def test_every_name_of_the_door_is_located_in_all_spellings(facade):
    module = importlib.import_module(f"vss2.d2.{facade}")
    for name in module.__all__:
        for root in ("vss2.d2", "detectron2", "vss2.d2._embedded"):
            assert locate(f"{root}.{facade}.{name}") is getattr(module, name)


@pytest.mark.skipif(BACKEND != "embedded", reason="a real detectron2 has this name")
def test_names_beyond_the_door_are_not_located():
    with pytest.raises(ImportError, match="running backend is embedded"):
        locate("detectron2.modeling.GeneralizedRCNN")


def test_the_door_itself_is_light():
    code = f"import sys; {HIDE}; import vss2.d2; print(sorted(sys.modules))"
    loaded = set(ast.literal_eval(run(code).stdout))
    assert loaded.isdisjoint({"torch", "numpy", "omegaconf", "hydra", "fvcore", "iopath"})
    assert not any(name.startswith("vss2.d2.") for name in loaded)


def test_configs_load_without_the_rest():
    code = "import sys; import vss2.d2.config; print(sorted(sys.modules))"
    loaded = set(ast.literal_eval(run(code, "embedded").stdout))
    assert loaded.isdisjoint({"torch", "fvcore.common.checkpoint", "tensorboard", "cv2"})
    assert "vss2.d2._embedded.engine" not in loaded


def test_no_facade_imports_what_is_slow_or_optional():
    lines = "; ".join(f"import vss2.d2.{facade}" for facade in FACADES)
    code = f"import sys; {lines}; print(sorted(sys.modules))"
    loaded = set(ast.literal_eval(run(code, "embedded").stdout))
    assert loaded.isdisjoint(
        {"fvcore.nn", "torchvision", "tensorboard", "matplotlib", "pycocotools", "cv2"}
    )


@pytest.mark.parametrize("backend", ["embedded", "detectron2"])
def test_the_contract_holds_on_the_other_backend_too(backend):
    if backend == BACKEND:
        pytest.skip("tests/d2/contract runs on this backend in this very process")
    if backend == "detectron2":
        pytest.importorskip("detectron2", reason="no detectron2 is installed to compare with")
    env = {**os.environ, "VSS2_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/d2/contract"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-8000:]
