"""STCN: masks of objects carried through a video by a space-time memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vss2.plugins import ProjectInfo

if TYPE_CHECKING:
    from .model import STCN as STCN

PROJECT = ProjectInfo(
    name="STCN",
    paper="Cheng et al., Rethinking Space-Time Networks with Improved Memory Coverage for "
    "Efficient Video Object Segmentation, NeurIPS 2021",
)

__all__ = ["PROJECT", "STCN"]


def __getattr__(name: str) -> Any:
    # The command line reads PROJECT of every project; it must not pay for their networks.
    if name == "STCN":
        from .model import STCN

        return STCN
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
