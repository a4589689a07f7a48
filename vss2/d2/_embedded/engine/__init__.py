"""Training loop, hooks, set-up and launch of the embedded backend."""

from __future__ import annotations

from . import hooks
from .defaults import create_ddp_model, default_argument_parser, default_setup, default_writers
from .launch import launch
from .train_loop import HookBase, SimpleTrainer, TrainerBase

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
