"""THE-Mask: temporal-aware hierarchical mask classification for video semantic segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vss2.plugins import ProjectInfo

if TYPE_CHECKING:
    from .model import SingleFrameTHEMask as SingleFrameTHEMask
    from .model import THEMask as THEMask

PROJECT = ProjectInfo(
    name="THE-Mask",
    paper="An et al., Temporal-aware Hierarchical Mask Classification for Video Semantic "
    "Segmentation, BMVC 2023",
)

__all__ = ["PROJECT", "SingleFrameTHEMask", "THEMask"]


def __getattr__(name: str) -> Any:
    # The command line reads PROJECT of every project; it must not pay for their networks.
    if name in ("SingleFrameTHEMask", "THEMask"):
        from . import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
