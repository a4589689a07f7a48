"""SFC: semantic-aware fine-grained correspondence, for label propagation without labels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vss2.plugins import ProjectInfo

if TYPE_CHECKING:
    from .data import TwoCropMapper as TwoCropMapper
    from .data import build_frame_loader as build_frame_loader
    from .encoder import FrameEncoder as FrameEncoder
    from .model import SFC as SFC
    from .training import FineGrainedCorrespondence as FineGrainedCorrespondence

PROJECT = ProjectInfo(
    name="SFC",
    paper="Hu et al., Semantic-Aware Fine-Grained Correspondence, ECCV 2022",
)

_PLACES = {
    "FineGrainedCorrespondence": "training",
    "FrameEncoder": "encoder",
    "SFC": "model",
    "TwoCropMapper": "data",
    "build_frame_loader": "data",
}

__all__ = ["PROJECT", *_PLACES]


def __getattr__(name: str) -> Any:
    # The command line reads PROJECT of every project; it must not pay for their networks.
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
