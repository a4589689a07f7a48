"""The one door to detectron2's API.

`vss2.d2.<facade>` re-exports, under detectron2's own names, what vss2 uses. Where a detectron2 can
be imported these are its own objects; elsewhere `vss2.d2._embedded` serves. Which of the two is
chosen once per process, all or nothing: event storages, catalogs, process groups and path managers
are module state that must not exist twice.

`VSS2_BACKEND` decides: `auto` (the default: detectron2 if it is there and works), `detectron2`
(fail if it does not) or `embedded` (never import it).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pydoc
import sys
import warnings
from pathlib import Path
from typing import Any

from vss2.errors import InputError

__all__ = ["BACKEND", "FACADES", "backend_info", "locate", "portable_name"]

FACADES = (
    "checkpoint",
    "config",
    "data",
    "engine",
    "evaluation",
    "layers",
    "modeling",
    "solver",
    "structures",
    "utils",
)

# Exactly what the facades import. A detectron2 in which one of them fails is of no use here.
_PROBED_MODULES = (
    "detectron2.checkpoint",
    "detectron2.config",
    "detectron2.data.build",
    "detectron2.data.catalog",
    "detectron2.data.common",
    "detectron2.data.samplers",
    "detectron2.engine",
    "detectron2.engine.defaults",
    "detectron2.engine.hooks",
    "detectron2.engine.launch",
    "detectron2.engine.train_loop",
    "detectron2.evaluation.evaluator",
    "detectron2.evaluation.testing",
    "detectron2.layers",
    "detectron2.modeling",
    "detectron2.modeling.postprocessing",
    "detectron2.solver",
    "detectron2.structures",
    "detectron2.utils",
    "detectron2.utils.comm",
    "detectron2.utils.env",
    "detectron2.utils.events",
    "detectron2.utils.file_io",
    "detectron2.utils.logger",
    "detectron2.utils.memory",
    "detectron2.utils.registry",
    "detectron2.utils.serialize",
)


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("detectron2") is not None
    except ValueError:  # a module without a spec sits in sys.modules
        return True


def _choose_backend() -> str:
    choice = os.environ.get("VSS2_BACKEND") or "auto"
    if choice not in ("auto", "detectron2", "embedded"):
        raise InputError(
            f"VSS2_BACKEND is {choice!r}; it must be 'auto', 'detectron2' or 'embedded'."
        )
    if choice == "embedded" or (choice == "auto" and not _is_installed()):
        return "embedded"
    try:
        for module in _PROBED_MODULES:
            importlib.import_module(module)
    except Exception as error:
        if choice == "detectron2":
            raise
        warnings.warn(
            "The detectron2 that is installed cannot be used: "
            f"{type(error).__name__}: {error}. vss2 goes on with its embedded subset; "
            "VSS2_BACKEND=embedded silences this, VSS2_BACKEND=detectron2 shows the whole error.",
            RuntimeWarning,
            stacklevel=3,
        )
        return "embedded"
    return "detectron2"


BACKEND: str = _choose_backend()


def backend_info() -> dict[str, str]:
    """Name ("detectron2" or "embedded"), version and folder of what serves behind the door."""
    if BACKEND == "detectron2":
        module = sys.modules["detectron2"]
        folder = str(Path(module.__file__ or "").parent)
    else:
        module = sys.modules[__name__.partition(".")[0]]
        folder = str(Path(__file__).parent / "_embedded")
    return {
        "name": BACKEND,
        "version": str(getattr(module, "__version__", "unknown")),
        "path": folder,
    }


def portable_name(dotted: str) -> str:
    """The spelling of a dotted name that both backends know.

    `detectron2.X.y` and `vss2.d2._embedded.X.y`, where the facade `X` has `y`, become
    `vss2.d2.X.y`; modules in between (`detectron2.solver.lr_scheduler.LRMultiplier`) fall away.
    Every other name comes back as it is.
    """
    for root in ("detectron2.", f"{__name__}._embedded."):
        if dotted.startswith(root):
            break
    else:
        return dotted
    facade, *rest = dotted[len(root) :].split(".")
    if facade not in FACADES:
        return dotted
    names = importlib.import_module(f"{__name__}.{facade}").__all__
    # The last hit: a module may be named as the function in it (engine.launch.launch), and what
    # stands behind a hit is an attribute of it (engine.hooks.EvalHook).
    for position in range(len(rest) - 1, -1, -1):
        if rest[position] in names:
            return ".".join([__name__, facade, *rest[position:]])
    return dotted


def locate(name: str) -> Any:
    """The object with dotted name `name`.

    Names of the door may be spelled `detectron2.X.y`, `vss2.d2._embedded.X.y` or `vss2.d2.X.y`:
    all three give the running backend's object.

    Raises:
        ImportError: nothing has this name, or it belongs to the other backend and not to the door.
    """
    portable = portable_name(name)
    other = "detectron2." if BACKEND == "embedded" else f"{__name__}._embedded."
    if portable.startswith(other):
        raise ImportError(
            f"Cannot locate {name}: the running backend is {BACKEND}, and the names that it "
            f"shares with the other one do not include this."
        )
    if portable.startswith(__name__ + "."):
        found = pydoc.locate(portable)
        if found is None:
            raise ImportError(f"Cannot locate {name}: {portable} does not exist.")
        return found
    from .utils import locate as locate_anything

    return locate_anything(portable)


def __getattr__(name: str) -> Any:
    """Facades load when they are first asked for."""
    if name in FACADES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *FACADES])
