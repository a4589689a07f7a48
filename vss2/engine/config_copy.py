"""The source of a run's config, copied beside its results.

`config.yaml` has the values; the source has the reasons, and functions that YAML cannot hold.
"""

from __future__ import annotations

import ast
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vss2.config import config_root

MARK = ".copied_by_vss2"

logger = logging.getLogger(__name__)


def config_sources(path: Path) -> list[Path]:
    """`path` and every config file that it is built on, through relative imports and `get_config`.

    Found by reading, not by running; a name that is put together at run time is not found.
    """
    found: dict[Path, None] = {}
    pending = [path.resolve()]
    while pending:
        file = pending.pop()
        if file in found or not file.is_file():
            continue
        found[file] = None
        if file.suffix == ".py":
            pending += _used_by(file)
    return list(found)


def copy_config_sources(path: Path, folder: Path) -> Path | None:
    """Copy `config_sources(path)` below `folder`, with their places relative to each other.

    Files of vss2's own configs lie under `vss2/` where the config is not one of them. Copies of an
    earlier start are replaced; a folder that something else has made is left alone.

    Returns:
        The copy of `path`; None if `folder` was left alone.
    """
    if folder.exists() and not (folder / MARK).is_file():
        logger.warning("%s was there before and is left alone: no copy of the config", folder)
        return None
    sources = config_sources(path)
    if folder.resolve() in path.resolve().parents:
        return None  # the config is the copy
    own_root = config_root().resolve()
    ours = [file for file in sources if own_root in file.parents]
    others = [file for file in sources if own_root not in file.parents]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    copies: dict[Path, Path] = {}
    if others:
        root = Path(os.path.commonpath([file.parent for file in others]))
        copies.update({file: folder / file.relative_to(root) for file in others})
    below = folder / "vss2" if others else folder
    copies.update({file: below / file.relative_to(own_root) for file in ours})
    for file, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    logger.info("the config's %d source files are copied to %s", len(copies), folder)
    return copies[path.resolve()]


def _used_by(file: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = file.parents[node.level - 1]
            yield base.joinpath(*(node.module or "").split(".")).with_suffix(".py").resolve()
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            argument = node.args[0]
            if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
                continue
            if name == "get_config":
                yield (config_root() / argument.value).resolve()
            elif name == "load_rel":
                yield (file.parent / argument.value).resolve()
