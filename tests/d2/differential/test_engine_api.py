"""Names, signatures, set-up and launch on both backends."""

from __future__ import annotations

import ast
import importlib
import inspect
import random
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.d2.differential.differences_engine import DIFFERENCES, MISSING_PARAMETERS
from tests.d2.differential.engine_pair import ROOTS, both
from tests.d2.engine_helpers import captured_logs, untouched_loggers

pytest.importorskip("detectron2", reason="compares with a real detectron2, and none is installed")

PAIR = both()
REFERENCE, EMBEDDED = PAIR
FACADES = ("data", "engine", "evaluation")


# Names and signatures


def facade_sources(facade):
    """{backend: {name: module}} as the two branches of a facade import them."""
    tree = ast.parse(Path(importlib.import_module(f"vss2.d2.{facade}").__file__).read_text())
    (branch,) = [node for node in tree.body if isinstance(node, ast.If)]
    sources = {"detectron2": {}, "embedded": {}}
    for root, body in (("detectron2", branch.body), ("embedded", branch.orelse)):
        for node in body:
            module = f"vss2.d2.{node.module}" if node.level else node.module
            sources[root].update({alias.name: module for alias in node.names})
    return sources


def public_callables(facade):
    """(name, detectron2's, embedded) for every function, class and hook class of a facade."""
    sources = facade_sources(facade)
    for name in sources["embedded"]:
        pair = [getattr(importlib.import_module(sources[b][name]), name) for b in ROOTS]
        if inspect.ismodule(pair[1]):
            for inner in pair[1].__all__:
                yield f"{facade}.{name}.{inner}", *(getattr(module, inner) for module in pair)
        elif callable(pair[1]):
            yield f"{facade}.{name}", *pair


def parameters_of(function):
    """{name: (kind, default)}; None for what is written in C and has no signature."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return None
    return {p.name: (p.kind, p.default) for p in signature.parameters.values() if p.name != "self"}


@pytest.mark.parametrize("facade", FACADES)
def test_both_branches_import_exactly_all(facade):
    names = sorted(importlib.import_module(f"vss2.d2.{facade}").__all__)
    sources = facade_sources(facade)
    assert sorted(sources["detectron2"]) == names
    assert sorted(sources["embedded"]) == names
    for imports in sources.values():
        for name, module in imports.items():
            assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("facade", FACADES)
def test_signatures(facade):
    for name, theirs, ours in public_callables(facade):
        expected, got = parameters_of(theirs), parameters_of(ours)
        if expected is None:
            assert got is None, name
            continue
        missing = MISSING_PARAMETERS.get(name, set())
        assert set(expected) - set(got) == missing, name
        assert got == {k: v for k, v in expected.items() if k not in missing}, name


@pytest.mark.parametrize("facade", FACADES)
def test_methods(facade):
    for name, theirs, ours in public_callables(facade):
        if not inspect.isclass(ours):
            continue
        for method, function in vars(ours).items():
            if method.startswith("_") or not inspect.isfunction(function):
                continue
            assert hasattr(theirs, method), f"{name}.{method}"
            expected = parameters_of(getattr(theirs, method))
            assert list(parameters_of(function)) == list(expected), f"{name}.{method}"


def test_every_difference_is_shown():
    folder = Path(__file__).parent
    shown = {
        node.name.removeprefix("test_difference_")
        for path in folder.glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_difference_")
    }
    assert set(DIFFERENCES) <= shown


# Set-up and launch


def test_parsers():
    lines = ["", "--config-file a --num-gpus 3 x=1 --resume", "--eval-only --machine-rank 2 y=2"]
    for line in lines:
        parsed = [b.defaults.default_argument_parser().parse_args(line.split()) for b in PAIR]
        assert vars(parsed[0]) == vars(parsed[1])


def set_up(b, folder, **values):
    """`default_setup` on one backend; what it changed, and what it logged."""
    folder.mkdir(exist_ok=True)
    path = folder / "cfg.py"
    path.write_text("train = {}\nmodel = {'a': [1, 2], 'b': '${train.seed}'}\n")
    cfg = b.config.LazyConfig.load(str(path))
    cfg.train.update({"output_dir": str(folder / "out"), "seed": 5, **values})
    args = Namespace(config_file=str(path), eval_only=False)
    with untouched_loggers(), captured_logs() as records:
        b.defaults.default_setup(cfg, args)
    drawn = random.random(), float(np.random.rand()), float(torch.rand(()))
    text = (folder / "out" / "config.yaml").read_text().replace(str(folder), "FOLDER")
    files = sorted(path.name for path in (folder / "out").iterdir())
    switches = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    return (drawn, text, files, switches), {r.name.split(".")[0] for r in records}


@pytest.fixture
def _switches():
    benchmark = torch.backends.cudnn.benchmark
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.benchmark = benchmark
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = tf32


@pytest.mark.usefixtures("_switches")
@pytest.mark.parametrize(
    "values", [{}, {"cudnn_benchmark": True}, {"float32_precision": "high"}, {"seed": 0}]
)
def test_setup(tmp_path, values):
    rows = [set_up(b, tmp_path / b.name, **values)[0] for b in PAIR]
    assert rows[0] == rows[1]


def test_difference_setup_logger_name(tmp_path):
    names = [set_up(b, tmp_path / b.name)[1] for b in PAIR]
    assert "detectron2" in names[0]
    assert "vss2" in names[1]


@pytest.mark.usefixtures("_switches")
@pytest.mark.filterwarnings("ignore")
def test_difference_setup_unknown_precision(tmp_path):
    with pytest.raises(ValueError, match="medium"):
        set_up(EMBEDDED, tmp_path / "embedded", float32_precision="low")
    _, _, _, (_, precision) = set_up(REFERENCE, tmp_path / "detectron2", float32_precision="low")[0]
    assert precision != "low"


def test_writers(tmp_path):
    names = []
    for b in PAIR:
        writers = b.defaults.default_writers(str(tmp_path / b.name / "x"), 10)
        names.append([type(w).__name__ for w in writers])
        assert (tmp_path / b.name / "x" / "metrics.json").exists()
        for writer in writers:
            writer.close()
    assert names[0] == names[1]


def started(b, monkeypatch, **kwargs):
    """Processes that `launch` would start, and the text arguments that they would get."""
    calls = []
    monkeypatch.setattr(
        torch.multiprocessing,
        "start_processes",
        lambda fn, args=(), nprocs=1, **kw: calls.append((nprocs, args, kw)),
    )
    b.engine.launch(print, **kwargs)
    ((nprocs, args, keywords),) = calls
    return nprocs, [a for a in args if isinstance(a, str)], keywords.get("daemon", False)


@pytest.mark.parametrize(
    ("kwargs", "url"),
    [
        ({"num_gpus_per_machine": 2, "dist_url": "tcp://127.0.0.1:5"}, "tcp://127.0.0.1:5"),
        ({"num_gpus_per_machine": 3, "dist_url": "auto"}, "tcp://127.0.0.1:"),
        (
            {
                "num_gpus_per_machine": 1,
                "num_machines": 2,
                "machine_rank": 1,
                "dist_url": "tcp://h:1",
            },
            "tcp://h:1",
        ),
    ],
)
def test_launch_starts_the_same_processes(monkeypatch, kwargs, url):
    for b in PAIR:
        nprocs, texts, daemon = started(b, monkeypatch, **kwargs)
        assert nprocs == kwargs["num_gpus_per_machine"]
        assert len(texts) == 1
        assert texts[0].startswith(url)
        assert daemon is False


def test_difference_launch_without_url(monkeypatch):
    texts = [started(b, monkeypatch, num_gpus_per_machine=2)[1] for b in PAIR]
    assert texts[0] == []
    assert texts[1][0].startswith("tcp://127.0.0.1:")
