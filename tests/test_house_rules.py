"""The rules of the house that a reader cannot check by eye: import arrows, sizes, the one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 500

# Floors from the top of the house to its cellar. A module imports from lower floors only.
FLOORS = (
    {"vss2.cli"},
    {"vss2.engine", "vss2.inference", "vss2.loading"},
    {
        "vss2.visualization",
        "vss2.evaluation",
        "vss2.data",
        "vss2.modeling",
        "vss2.testing",
    },
    {
        "vss2.config",
        "vss2.overrides",
        "vss2.plugins",
        "vss2.checkpoint",
        "vss2.checkpoint_folder",
        "vss2.checkpoint_io",
        "vss2.solver",
        "vss2.layers",
    },
    {"vss2.d2"},
    {"vss2.errors", "vss2.interrupt"},
)
# Within a floor.
SIDEWAYS = {
    ("vss2.evaluation", "vss2.data.datasets"),
    ("vss2.evaluation", "vss2.data.image_io"),
    ("vss2.evaluation", "vss2.data.labels"),
    ("vss2.evaluation", "vss2.data.vos_palette"),
    ("vss2.evaluation", "vss2.visualization"),
    ("vss2.config", "vss2.overrides"),
    ("vss2.config", "vss2.plugins"),
    ("vss2.checkpoint", "vss2.checkpoint_folder"),
    ("vss2.checkpoint", "vss2.checkpoint_io"),
    ("vss2.checkpoint_folder", "vss2.checkpoint_io"),
    ("vss2.inference", "vss2.loading"),
}
# `vss2/__init__` and `vss2/env` import lazily, on call.
LAZY = {"vss2/__init__.py", "vss2/env.py"}


def python_files(*folders: str) -> list[Path]:
    return [
        path
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "__pycache__" not in path.parts
    ]


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of everything that the file imports, at any depth."""
    package = list(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def floor(module: str) -> int | None:
    return next((i for i, names in enumerate(FLOORS) if room(module) in names), None)


def violations(path: Path) -> list[str]:
    here = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = []
    for module in imported_modules(path):
        if not module.startswith("vss2.") or room(module) == room(here):
            continue
        if module == "vss2.projects":  # the empty package that projects live in
            continue
        target, source = floor(module), floor(here)
        if room(module) == "vss2.projects" and not here.startswith("vss2.projects"):
            found.append(f"{here} imports a project: {module}")
        elif target is None or source is None:
            continue
        elif target < source:
            found.append(f"{here} imports upward: {module}")
        elif target == source and not any(
            room(here) == a and module.startswith(b) for a, b in SIDEWAYS
        ):
            found.append(f"{here} imports sideways: {module}")
    return found


@pytest.mark.parametrize("path", python_files("vss2"), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_run_one_way(path: Path) -> None:
    if str(path.relative_to(ROOT)) in LAZY:
        return
    assert violations(path) == []


def test_every_room_stands_on_a_floor() -> None:
    rooms = {
        room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for path in python_files("vss2")
    } - {"vss2.__init__", "vss2.env", "vss2.projects"}
    assert rooms == set().union(*FLOORS)


def test_projects_use_no_other_project_and_no_command_line() -> None:
    for path in python_files("projects"):
        name = path.relative_to(ROOT).parts[1]
        for module in imported_modules(path):
            assert not module.startswith("vss2.cli"), f"{path} imports {module}"
            if module.startswith("vss2.projects."):
                assert module.split(".")[2] == name, f"{path} imports {module}"


def test_detectron2_is_named_behind_the_door_only() -> None:
    outside = [
        path
        for path in python_files("vss2", "projects", "tools", "configs", "tests", "benchmarks")
        if not path.is_relative_to(ROOT / "vss2/d2") and not path.is_relative_to(ROOT / "tests/d2")
    ]
    for path in outside:
        for module in imported_modules(path):
            assert module.split(".")[0] != "detectron2", f"{path} imports {module}"


def test_configs_are_not_imported_as_a_package() -> None:
    for path in python_files("vss2", "projects", "tools", "tests"):
        for module in imported_modules(path):
            assert not module.startswith("vss2.configs"), f"{path} imports {module}"


def test_files_are_short() -> None:
    folders = ("vss2", "projects", "tools", "configs", "tests", "benchmarks")
    for path in python_files(*folders):
        lines = len(path.read_text().splitlines())
        assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines"


def test_the_rule_itself_sees_a_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    cases = {
        "vss2/data/x.py": "from vss2.modeling import mit",
        "vss2/layers/x.py": "from ..engine import train",
        "vss2/modeling/x.py": "import vss2.projects.cffm",
    }
    for name, text in cases.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        assert len(violations(path)) == 1, name
    path = tmp_path / "vss2/evaluation/x.py"
    path.parent.mkdir(parents=True)
    path.write_text("from ..data.labels import reduce_labels\nfrom vss2.d2.utils import comm")
    assert violations(path) == []
