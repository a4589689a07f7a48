"""`detectron2.structures`: padded batches of images."""

from __future__ import annotations

from . import BACKEND

if BACKEND == "detectron2":
    from detectron2.structures import ImageList
else:
    from ._embedded.structures import ImageList

__all__ = ["ImageList"]
