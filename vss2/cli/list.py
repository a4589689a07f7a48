"""`vss2 list`: which configs, projects, data sets and backbones there are."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vss2.cli import run_tool

Row = dict[str, Any]


def config_rows() -> list[Row]:
    """Every config that can be trained: short name, what its first line says, file."""
    from vss2.config import known_configs

    return [
        {"name": name, "about": _first_doc_line(path), "file": str(path)}
        for name, path in sorted(known_configs().items())
    ]


def project_rows() -> list[Row]:
    """Every project: name, method, paper, commands, package and, if it does not import, why."""
    from vss2.config import known_configs
    from vss2.plugins import ProjectInfo, find_projects, project_info

    configs = list(known_configs())
    rows = []
    for project in find_projects():
        info, error = ProjectInfo(name=""), None
        try:
            info = project_info(project)
        except Exception as e:  # a broken project must not hide the others
            error = f"{type(e).__name__}: {e}"
        rows.append(
            {
                "name": project.name,
                "method": info.name,
                "paper": info.paper,
                "configs": sum(name.startswith(f"{project.name}/") for name in configs),
                "commands": list(info.commands),
                "package": project.package,
                "error": error,
            }
        )
    return rows


def dataset_rows() -> list[Row]:
    """Every registered data set: name, number of classes, folder and whether that is there.

    The folder is what the data set's metadata call `folder`, below VSS2_DATASETS unless absolute;
    for one that says nothing, both are None.
    """
    from vss2.d2.data import DatasetCatalog, MetadataCatalog
    from vss2.data.datasets import datasets_root

    _import_projects()
    rows = []
    for name in sorted(DatasetCatalog.list()):
        metadata = MetadataCatalog.get(name)
        folder = metadata.get("folder", None)
        path = None if folder is None else datasets_root() / folder
        rows.append(
            {
                "name": name,
                "classes": len(metadata.get("stuff_classes", None) or []) or None,
                "present": None if path is None else path.is_dir(),
                "folder": None if path is None else str(path),
                "note": metadata.get("note", ""),
            }
        )
    return rows


def backbone_rows() -> list[Row]:
    """Every registered backbone: name, what its first line says, module."""
    from vss2.d2.modeling import BACKBONE_REGISTRY

    importlib.import_module("vss2.modeling.backbone")
    _import_projects()
    return [
        {"name": name, "about": _about(found), "module": found.__module__}
        for name, found in sorted(BACKBONE_REGISTRY)
    ]


TOPICS: dict[str, Callable[[], list[Row]]] = {
    "configs": config_rows,
    "projects": project_rows,
    "datasets": dataset_rows,
    "backbones": backbone_rows,
}
_PAPER_WIDTH = 60
# Columns that only --json has.
_LONG = {"configs": {"file"}, "projects": {"package"}, "datasets": set(), "backbones": {"module"}}


def build_parser() -> argparse.ArgumentParser:
    """The tool's options."""
    parser = argparse.ArgumentParser(
        prog="vss2 list",
        description="List what vss2 and its projects offer.",
        epilog="examples:\n  vss2 list\n  vss2 list configs backbones --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "topics",
        nargs="*",
        metavar="TOPIC",
        help=f"one or more of {', '.join(TOPICS)}; default all",
    )
    parser.add_argument("--json", action="store_true", help="print JSON: {topic: [row, ...]}")
    return parser


def table(topic: str, rows: Sequence[Row]) -> str:
    """The rows of a topic for human eyes; columns that are empty throughout are left out."""
    from tabulate import tabulate

    columns = [
        key
        for key in (rows[0] if rows else ())
        if key not in _LONG[topic] and any(row[key] not in (None, "", []) for row in rows)
    ]
    cells = [[_cell(row[key]) for key in columns] for row in rows]
    widths = [_PAPER_WIDTH if key == "paper" else None for key in columns]
    body = tabulate(
        cells, headers=columns, tablefmt="simple", disable_numparse=True, maxcolwidths=widths
    )
    return f"{topic} ({len(rows)})\n\n{body}\n" if rows else f"{topic}: none\n"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


@functools.cache
def _import_projects() -> None:
    """Let the projects register what they have; what fails is a line on stderr."""
    for row in project_rows():
        if row["error"]:
            print(f"warning: project {row['name']} is left out: {row['error']}", file=sys.stderr)


def _about(found: Any) -> str:
    return (inspect.getdoc(found) or "").partition("\n")[0]


def _first_doc_line(path: Path) -> str:
    try:
        return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    except SyntaxError as e:
        return f"(syntax error in line {e.lineno})"


def _run(argv: Sequence[str] | None) -> int:
    from vss2.errors import InputError, did_you_mean

    args = build_parser().parse_args(argv)
    for topic in args.topics:
        if topic not in TOPICS:
            raise InputError(
                f"vss2 list knows no {topic!r}.{did_you_mean(topic, TOPICS)} "
                f"Topics: {', '.join(TOPICS)}"
            )
    found = {topic: TOPICS[topic]() for topic in args.topics or TOPICS}
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print("\n".join(table(topic, rows) for topic, rows in found.items()), end="")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run with `argv` (default: the command line); 2 after a user's mistake."""
    return run_tool(_run, argv)


if __name__ == "__main__":
    sys.exit(main())
