"""Stand-ins for detectron2's modules, seen by config files alone.

A lazy config written for detectron2 says `from detectron2.config import LazyCall`. Where the
embedded subset serves, these modules answer from the door's facades. They never enter
`sys.modules`: nothing outside a config file sees a detectron2 that is not there.
"""

from __future__ import annotations

import importlib
import types
from typing import Any

import vss2.d2 as door

__all__ = ["import_alias"]


class _Alias(types.ModuleType):
    """One module of detectron2, by its dotted name."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "A part of detectron2, served by vss2.d2.")
        self.__path__: list[str] = []
        facade = name.split(".")[1:2]
        if facade:
            self.__all__ = importlib.import_module(f"vss2.d2.{facade[0]}").__all__

    def __getattr__(self, name: str) -> Any:
        dotted = f"{self.__name__}.{name}"
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if self.__name__ == "detectron2" and name in door.FACADES:
            return _Alias(dotted)
        try:
            return _from_door(dotted)
        except ImportError as error:
            raise AttributeError(str(error)) from error


def _from_door(dotted: str) -> Any:
    """The door's object for a name of detectron2's; ImportError where it has none."""
    if door.portable_name(dotted) == dotted:
        raise ImportError(_refusal(dotted), name=dotted)
    return door.locate(dotted)


def _refusal(name: str) -> str:
    return (
        f"{name} is not in the part of detectron2 that vss2 brings along; "
        "a config that needs it needs detectron2 installed."
    )


def import_alias(name: str, names: tuple[str, ...]) -> types.ModuleType:
    """What `__import__` must return for the dotted module `name` of detectron2.

    Args:
        names: those of `from name import names`: the module itself is returned. Empty for
            `import name`: the top module, from which the dotted name can be followed.

    Raises:
        ImportError: the door has no such module, or not all of the names in it.
    """
    parts = name.split(".")
    if len(parts) > 1 and parts[1] not in door.FACADES:
        raise ImportError(_refusal(name), name=name)
    top = module = _Alias(parts[0])
    for length in range(2, len(parts) + 1):
        child = _Alias(".".join(parts[:length]))
        setattr(module, parts[length - 1], child)
        module = child
    for wanted in names:
        # Asked for here because the import statement's own error would not say why.
        if wanted != "*" and not (module is top and wanted in door.FACADES):
            _from_door(f"{name}.{wanted}")
    return module if names else top
