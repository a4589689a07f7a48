"""Configs: found by path or short name, overridden strictly, saved for either backend."""

from __future__ import annotations

import ast
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from .d2 import portable_name
from .d2.config import LazyConfig
from .errors import InputError, InputFileError, did_you_mean
from .overrides import apply_overrides
from .plugins import find_projects, make_importable, package_of_config, use_import_path

__all__ = [
    "apply_overrides",
    "config_root",
    "get_config",
    "known_configs",
    "load_config",
    "resolve_config",
    "save_config",
]

SUFFIXES = (".py", ".yaml", ".yml")

logger = logging.getLogger(__name__)


class MissingConfigError(InputFileError, RuntimeError):
    """No config of that name; also a RuntimeError, as callers of a `get_config` expect."""


def config_root() -> Path:
    """The folder of vss2's own configs: inside the installed package, else in the checkout."""
    package = Path(__file__).resolve().parent
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


def get_config(name: str) -> DictConfig:
    """One of vss2's own configs, such as "common/train.py", as a fresh copy.

    Raises:
        MissingConfigError: there is no such file (an InputError and a RuntimeError).
    """
    path = config_root() / name
    if not path.is_file():
        known = [p.relative_to(config_root()).as_posix() for p in config_root().rglob("*.py")]
        raise MissingConfigError(
            f"vss2 has no config {name!r} in {config_root()}.{did_you_mean(name, known)}"
        )
    return LazyConfig.load(str(path))


def load_config(name_or_path: str | os.PathLike[str]) -> DictConfig:
    """The config that a path or a short name stands for.

    A config file is a program: load only those that you trust.

    A config in `<root>/<package>/configs/` of a package that is not installed can import that
    package: `<root>` is put first on the import path, and remembered in the config's key
    `import_path`. Where a loaded config has that key, as one that was saved by such a run, the
    folders in it are put on the import path as well.

    Raises:
        InputError: no such config, two of that name, bad syntax, a module or a key of another
            config that it asks for is missing, or a folder in `import_path` is gone.
    """
    path = resolve_config(name_or_path)
    package = None if _inside_vss2(path) else package_of_config(path)
    root = make_importable(package)[1] if package else None
    try:
        cfg = LazyConfig.load(str(path))
    except SyntaxError as e:
        cause = e if e.lineno or not isinstance(e.__cause__, SyntaxError) else e.__cause__
        raise InputError(
            f"config {path} has a syntax error in line {cause.lineno}: {cause.msg}"
        ) from e
    except (ConfigAttributeError, ConfigKeyError) as e:
        raise InputError(f"config {path} asks for a key that is missing: {_first_line(e)}") from e
    except ModuleNotFoundError as e:
        if not _own_missing_import(e, path):
            raise
        raise InputError(
            f"config {path} imports {e.name!r}, which is neither installed nor the package around "
            "the config (<package>/__init__.py, <package>/configs/<config>.py)"
        ) from e
    use_import_path(cfg, path)
    if root is not None:
        cfg.import_path = [str(root)]
    return cfg


def resolve_config(name_or_path: str | os.PathLike[str]) -> Path:
    """The file that `name_or_path` stands for.

    It is looked up as a path, as `<project>/<config>` in the configs of that project, in vss2's
    own configs, and in the projects that other packages announce as entry points of the group
    `vss2.projects`. The suffix ".py" may be left out.

    Raises:
        InputError: two different files answer to the name.
        InputFileError: none does; the message lists close names.
    """
    name = os.fspath(name_or_path)
    hits: dict[Path, None] = {}
    for candidate in _candidates(name):
        if candidate.is_file():
            hits[candidate.resolve()] = None
    if len(hits) > 1:
        raise InputError(
            f"config {name!r} is ambiguous: {', '.join(map(str, hits))}. Give the path of one."
        )
    if not hits:
        raise MissingConfigError(
            f"no config {name!r}: it is neither a file nor a known short name."
            f"{did_you_mean(name, known_configs())}"
        )
    path = next(iter(hits))
    if path.suffix not in SUFFIXES:
        raise InputError(f"config {path} must end in one of {', '.join(SUFFIXES)}")
    return path


def known_configs() -> dict[str, Path]:
    """Short name -> file of every config that can be trained, of vss2 and of all projects."""
    found: dict[str, Path] = {}
    for prefix, folder in [("", config_root()), *_project_configs()]:
        for path in sorted(folder.rglob("*.py")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if not name.startswith(("common/", "__", "_")):
                found.setdefault(prefix + name, path)
    return found


def save_config(cfg: DictConfig, path: str | os.PathLike[str]) -> None:
    """Write `cfg` as YAML that loads back under either backend.

    The file appears whole or not at all. A target that cannot be imported by name (a lambda, a
    function of a config file) keeps the YAML from loading back: it is then only to be read, the
    config is pickled beside it as `<path>.pkl`, and the log says so.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    portable, nameless = _portable(cfg)
    LazyConfig.save(portable, str(temporary))
    pickled = temporary.with_name(temporary.name + ".pkl")
    if nameless:
        logger.warning(
            "%s cannot be loaded back, only read: %s cannot be imported by name. "
            "The config is pickled beside it",
            path,
            ", ".join(nameless),
        )
        pickled.write_bytes(cloudpickle.dumps(cfg))
    for written, final in ((temporary, path), (pickled, path.with_name(path.name + ".pkl"))):
        if written.exists():
            os.replace(written, final)


def _portable(cfg: DictConfig) -> tuple[DictConfig, list[str]]:
    """A copy of `cfg` whose targets do not name the backend, and targets that have no name."""
    copy = cfg.copy()
    nameless = []
    pending: list[Any] = [copy]
    while pending:
        node = pending.pop()
        for key in _keys(node):
            value = node._get_node(key)
            if isinstance(value, (DictConfig, ListConfig)):
                if not (value._is_none() or value._is_missing() or value._is_interpolation()):
                    pending.append(value)
            elif key == "_target_":
                target = value._value()
                name = target if isinstance(target, str) else _dotted_name(target)
                if portable_name(name) != name:
                    node[key] = portable_name(name)
                elif not isinstance(target, str) and not _has_name(target):
                    nameless.append(name)
    return copy, nameless


def _dotted_name(target: Any) -> str:
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"


def _has_name(target: Any) -> bool:
    """Whether an import by the target's own name gives the target."""
    found: Any = sys.modules.get(getattr(target, "__module__", None) or "")
    for part in str(getattr(target, "__qualname__", "")).split("."):
        found = getattr(found, part, None)
    return found is target


def _keys(node: DictConfig | ListConfig) -> list[Any]:
    return list(range(len(node))) if isinstance(node, ListConfig) else list(node.keys())


def _candidates(name: str) -> Iterator[Path]:
    names = [name] if name.endswith(SUFFIXES) else [name, f"{name}.py"]
    yield from (Path(n).expanduser() for n in names)
    if name.startswith((".", "/", "~")):
        return
    project, _, rest = name.partition("/")
    for n in names:
        yield config_root() / n
    if rest:
        for prefix, folder in _project_configs(only=project):
            yield from (folder / n[len(prefix) :] for n in names)


def _project_configs(only: str | None = None) -> Iterator[tuple[str, Path]]:
    """("<project>/", its folder of configs) for the projects here and those announced by others."""
    for project in find_projects():
        if project.folder is None or only not in (None, project.name):
            continue
        folder = project.folder / "configs"
        if folder.is_dir():
            yield f"{project.name}/", folder


def _inside_vss2(path: Path) -> bool:
    own = [folder for _, folder in _project_configs()] + [config_root()]
    return any(folder.resolve() in path.parents for folder in own)


def _own_missing_import(error: ModuleNotFoundError, path: Path) -> bool:
    """Whether the config itself imports what is missing, rather than something that it imports."""
    wanted = (error.name or "").partition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())) if path.suffix == ".py" else ():
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return wanted in names


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
