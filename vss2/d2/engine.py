"""Training loop, hooks, set-up and launch: detectron2's own where it serves, else the subset."""

from __future__ import annotations

from . import BACKEND

if BACKEND == "detectron2":
    from detectron2.engine import hooks
    from detectron2.engine.defaults import (
        create_ddp_model,
        default_argument_parser,
        default_setup,
        default_writers,
    )
    from detectron2.engine.launch import launch
    from detectron2.engine.train_loop import HookBase, SimpleTrainer, TrainerBase
else:
    from ._embedded.engine import (
        HookBase,
        SimpleTrainer,
        TrainerBase,
        create_ddp_model,
        default_argument_parser,
        default_setup,
        default_writers,
        hooks,
        launch,
    )

__all__ = [
    "HookBase",
    "SimpleTrainer",
    "TrainerBase",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
    "hooks",
    "launch",
]
