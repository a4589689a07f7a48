"""Projects: methods that plug in by folder, by an installed package or by a path.

A project is a package with a folder `configs`. Those of this checkout are sub-packages of
`vss2.projects`; other packages announce theirs as entry points of the group `vss2.projects`; and
a package that is not installed is found through the path of its config.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import site
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .errors import InputError, InputFileError

__all__ = [
    "Project",
    "ProjectInfo",
    "find_projects",
    "make_importable",
    "package_of_config",
    "project_info",
    "project_named",
    "use_import_path",
]

ENTRY_POINT_GROUP = "vss2.projects"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProjectInfo:
    """What a project says about itself, as `PROJECT` in its `__init__.py`.

    Attributes:
        name: the method, as its paper writes it.
        paper: where it is published, one line.
        commands: name -> "module:function". `vss2 <project> <name> ...` imports the module and
            calls the function with the list of arguments; it returns an exit code (None is 0).
    """

    name: str
    paper: str = ""
    commands: Mapping[str, str] = field(default_factory=dict)


class Project(NamedTuple):
    """A project that was found; nothing of it is imported yet.

    Attributes:
        name: in short names of configs and on the command line.
        package: the name to import.
        folder: where the package lies; None where an entry point leads nowhere.
    """

    name: str
    package: str
    folder: Path | None


def find_projects() -> list[Project]:
    """The projects of this checkout or wheel and those that installed packages announce."""
    from . import projects

    here = {p.parent.name for root in projects.__path__ for p in Path(root).glob("*/__init__.py")}
    packages = {f"{projects.__name__}.{name}": name for name in sorted(here)}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        packages.setdefault(entry.value.partition(":")[0], entry.name)
    return [Project(name, package, _folder(package)) for package, name in packages.items()]


def project_named(name: str) -> Project | None:
    """The project of that name, if there is one.

    Raises:
        InputError: two packages announce a project of that name.
    """
    found = [project for project in find_projects() if project.name == name]
    if len(found) > 1:
        packages = ", ".join(project.package for project in found)
        raise InputError(f"project {name!r} is announced by several packages: {packages}")
    return found[0] if found else None


def project_info(project: Project) -> ProjectInfo:
    """Import a project and return its `PROJECT`; one without it has its name alone.

    Raises:
        ImportError: the package cannot be imported.
        InputError: its `PROJECT` is something else than a ProjectInfo.
    """
    info = getattr(importlib.import_module(project.package), "PROJECT", None)
    if info is None:
        return ProjectInfo(name=project.name)
    if not isinstance(info, ProjectInfo):
        raise InputError(
            f"PROJECT in {project.package} is a {type(info).__name__}, expected a "
            "vss2.plugins.ProjectInfo"
        )
    return info


def package_of_config(path: Path) -> Path | None:
    """The package that a config belongs to: `<package>/configs/.../<config>`, or None."""
    for folder in path.parents:
        if folder.name == "configs" and (folder.parent / "__init__.py").is_file():
            return folder.parent
    return None


def make_importable(package: Path) -> tuple[str, Path | None]:
    """Let the package in this folder be imported by its own name.

    Where it is not, the folder around it is put first on the import path.

    Returns:
        The name to import, and the folder that must be on the import path of other processes
        too; None for an installed package.

    Raises:
        InputError: another package of that name is imported already.
    """
    package = package.resolve()
    root = package.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    parts = package.relative_to(root).parts
    top = root / parts[0]
    if top not in _locations(parts[0]):
        if parts[0] in sys.modules:
            raise InputError(
                f"{package} cannot be imported: {parts[0]!r} is already imported from "
                f"{', '.join(map(str, _locations(parts[0]))) or 'elsewhere'}. Rename the folder"
            )
        _put_first(root)
    on_path = {Path(entry).resolve() for entry in sys.path if isinstance(entry, str)}
    installed = root in _install_folders() or root not in on_path
    return ".".join(parts), None if installed else root


def use_import_path(cfg: Any, source: Path) -> None:
    """Put the folders in `import_path` of a saved config on the import path.

    Raises:
        InputFileError: one of them is gone.
    """
    on_path = {Path(entry).resolve() for entry in sys.path if isinstance(entry, str)}
    for entry in reversed(list(cfg.get("import_path") or [])):
        root = Path(str(entry)).expanduser()
        if not root.is_dir():
            raise InputFileError(
                f"config {source}: the folder {root} in its import_path, which held the code of "
                "the run, does not exist. Correct that line, or remove it if the code is installed"
            )
        if root.resolve() not in on_path:
            _put_first(root.resolve())


def _folder(package: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    locations = list(spec.submodule_search_locations or []) if spec else []
    return Path(locations[0]) if locations else None


def _locations(name: str) -> list[Path]:
    """Folders of the top-level package `name`, imported or to be imported; resolved."""
    if name in sys.modules:
        found = getattr(sys.modules[name], "__path__", [])
    else:
        importlib.invalidate_caches()
        spec = importlib.util.find_spec(name)
        found = (spec.submodule_search_locations or []) if spec else []
    return [Path(location).resolve() for location in found]


def _put_first(root: Path) -> None:
    logger.info("putting %s first on the import path", root)
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()


def _install_folders() -> set[Path]:
    paths = sysconfig.get_paths()
    return {
        Path(p).resolve() for p in (paths["purelib"], paths["platlib"], site.getusersitepackages())
    }
