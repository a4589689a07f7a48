"""`detectron2.solver`: parameter groups and learning-rate schedules."""

from __future__ import annotations

from . import BACKEND

if BACKEND == "detectron2":
    from detectron2.solver import LRMultiplier, WarmupParamScheduler, get_default_optimizer_params
else:
    from ._embedded.solver import LRMultiplier, WarmupParamScheduler, get_default_optimizer_params

__all__ = ["LRMultiplier", "WarmupParamScheduler", "get_default_optimizer_params"]
