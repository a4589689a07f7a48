"""Running config files, and what `import` means inside of them.

A config file runs in a namespace of its own whose `__package__` carries a private prefix. While it
runs, `builtins.__import__` is replaced: a relative import from such a namespace is resolved by file
position alone and runs the file anew, so no load shares state with another; and an absolute import
of detectron2 is served by the door. Everything else is ordinary Python.
"""

from __future__ import annotations

import builtins
import os
import threading
import types
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig

from ..utils.file_io import PathManager

__all__ = ["cast_to_config", "run_config_file"]

_PRIVATE_PACKAGE = "vss2._lazy_config"
# The patch is global to the process: one thread at a time, and a config may load another.
_patch_lock = threading.RLock()


def cast_to_config(value: Any) -> Any:
    """A dict as `DictConfig` that may hold objects; anything else as it is."""
    if isinstance(value, dict):
        return DictConfig(value, flags={"allow_objects": True})
    return value


def run_config_file(filename: str) -> dict[str, Any]:
    """Execute a config file and return its global names.

    Raises:
        FileNotFoundError: there is no such file.
        SyntaxError: it is not valid Python; the message names the file.
    """
    with _patch_lock, _patched_import():
        return vars(_execute(filename))


def _execute(filename: str) -> types.ModuleType:
    """Run the file as a module that no one else can import."""
    with PathManager.open(filename, "r") as file:
        source = file.read()
    try:
        code = compile(source, filename, "exec")
    except SyntaxError as error:
        raise SyntaxError(f"Config file {filename} has a syntax error: {error}") from error
    package = f"{_PRIVATE_PACKAGE}.{uuid.uuid4().hex[:8]}"
    module = types.ModuleType(f"{package}.{os.path.basename(filename)}")
    module.__file__ = filename
    module.__package__ = package
    exec(code, vars(module))
    return module


@contextmanager
def _patched_import() -> Iterator[None]:
    outer_import = builtins.__import__

    def config_import(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        package = (globals or {}).get("__package__") or ""
        if globals is not None and package.startswith(_PRIVATE_PACKAGE):
            if level > 0:
                return _relative_import(name, globals["__file__"], tuple(fromlist or ()), level)
            if name.partition(".")[0] == "detectron2":
                module = _import_from_door(name, tuple(fromlist or ()))
                if module is not None:
                    return module
        return outer_import(name, globals, locals, fromlist or (), level)

    builtins.__import__ = config_import
    try:
        yield
    finally:
        builtins.__import__ = outer_import


def _relative_import(
    name: str, importer: str, names: tuple[str, ...], level: int
) -> types.ModuleType:
    """`from .name import names` inside the config file `importer`."""
    path = _relative_path(name, importer, level)
    module = _execute(path)
    content = vars(module)
    for imported in content if "*" in names else names:
        if imported in content and not imported.startswith("__"):
            content[imported] = cast_to_config(content[imported])
    return module


def _relative_path(name: str, importer: str, level: int) -> str:
    """File that a relative import means; its position alone decides, not any package."""
    if not name:
        raise ImportError(
            "Relative import of directories is not allowed within a config file: write "
            f"`from .file import name` in {importer}."
        )
    folder = os.path.dirname(importer)
    for _ in range(level - 1):
        folder = os.path.dirname(folder) if folder else ".."
    stem = os.path.join(folder, *name.split("."))
    path = stem + ".py"
    if not PathManager.isfile(path):
        if PathManager.isdir(stem):
            raise ImportError(
                "Relative import of directories is not allowed within a config file: "
                f"{importer} imports {'.' * level}{name}, which is a folder."
            )
        raise ImportError(f"Cannot import name {name} from {importer}: {path} does not exist.")
    return path


def _import_from_door(name: str, names: tuple[str, ...]) -> Any:
    """What an absolute import of `name` gives inside a config file, for a name of detectron2's.

    None where a detectron2 is what serves behind the door: its own modules are meant then.
    """
    import vss2.d2 as door  # late: the door imports this package

    if door.BACKEND != "embedded":
        return None
    from .alias import import_alias

    return import_alias(name, names)
