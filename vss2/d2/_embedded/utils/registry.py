"""Registries, and the two ways between objects and their dotted names."""

from __future__ import annotations

import pydoc
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def locate(name: str) -> Any:
    """The object with dotted name `name`, such as `"torch.optim.AdamW"`.

    A name of detectron2's own (`"detectron2.solver.LRMultiplier"`), as found in configs that were
    saved with detectron2, is served by the door if the door has it.

    Raises:
        ImportError: nothing has this name.
    """
    if name.partition(".")[0] == "detectron2":
        from vss2.d2 import portable_name  # late: the door imports this package

        name = portable_name(name)
    found = pydoc.locate(name)
    if found is not None:
        return found
    from hydra._internal.utils import _locate

    try:
        return _locate(name)
    except Exception as error:
        raise ImportError(f"Cannot dynamically locate object {name}: {error}") from error


def _convert_target_to_string(obj: Any) -> str:
    """The shortest dotted name of `obj`: `torch.optim.AdamW`, not `torch.optim.adamw.AdamW`."""
    module, qualname = obj.__module__, obj.__qualname__
    parts = module.split(".")
    for length in range(1, len(parts)):
        candidate = ".".join([*parts[:length], qualname])
        try:
            if locate(candidate) is obj:
                return candidate
        except ImportError:
            continue
    return f"{module}.{qualname}"
