"""`detectron2.checkpoint`: saving and loading of runs."""

from __future__ import annotations

from . import BACKEND

if BACKEND == "detectron2":
    from detectron2.checkpoint import Checkpointer, DetectionCheckpointer, PeriodicCheckpointer
else:
    from ._embedded.checkpoint import Checkpointer, DetectionCheckpointer, PeriodicCheckpointer

__all__ = ["Checkpointer", "DetectionCheckpointer", "PeriodicCheckpointer"]
