"""torch.compile for the parts of a model that gain from it."""

from __future__ import annotations

import logging

from torch import nn

from vss2.errors import InputError

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")

logger = logging.getLogger(__name__)


def compile_targets(
    model: nn.Module,
    mode: str | None = None,
    dynamic: bool | None = None,
    backend: str = "inductor",
) -> list[str]:
    """Compile in place the submodules that the model names in `compile_targets`.

    Call it before the model is wrapped for distributed training. Names in the state dict stay as
    they are. Compilation itself happens at the first forward pass.

    Args:
        model: has `compile_targets`, names of submodules whose `forward` is free of
            data-dependent Python.
        mode, dynamic, backend: of `torch.compile`.

    Returns:
        The names that were compiled.

    Raises:
        InputError: an unknown mode, or a model that names no targets.
    """
    if mode is not None and mode not in MODES:
        raise InputError(f"the compile mode is one of {', '.join(MODES)}, got {mode!r}")
    names = list(getattr(model, "compile_targets", ()))
    if not names:
        raise InputError(
            f"{type(model).__name__} names no compile_targets: it cannot be compiled; "
            "switch compilation off"
        )
    for name in names:
        model.get_submodule(name).compile(mode=mode, dynamic=dynamic, backend=backend)
    logger.info("torch.compile (%s): %s", mode or "default", ", ".join(names))
    return names
