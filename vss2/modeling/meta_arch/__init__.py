"""Base classes of the methods."""

from .mask_propagator import VideoMaskPropagator
from .video_segmentor import VideoSegmentor

__all__ = ["VideoMaskPropagator", "VideoSegmentor"]
