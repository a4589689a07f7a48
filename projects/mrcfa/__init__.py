"""MRCFA: relations among cross-frame affinities, for video semantic segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vss2.plugins import ProjectInfo

if TYPE_CHECKING:
    from .model import MRCFA as MRCFA

PROJECT = ProjectInfo(
    name="MRCFA",
    paper="Sun et al., Mining Relations among Cross-Frame Affinities for Video Semantic "
    "Segmentation, ECCV 2022",
)

__all__ = ["MRCFA", "PROJECT"]


def __getattr__(name: str) -> Any:
    # The command line reads PROJECT of every project; it must not pay for their networks.
    if name == "MRCFA":
        from .model import MRCFA

        return MRCFA
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
