"""`detectron2.config`: lazy configs."""

from __future__ import annotations

from . import BACKEND

if BACKEND == "detectron2":
    from detectron2.config import LazyCall, LazyConfig, instantiate
else:
    from ._embedded.config import LazyCall, LazyConfig, instantiate

__all__ = ["LazyCall", "LazyConfig", "instantiate"]
