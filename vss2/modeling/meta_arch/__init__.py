"""Base classes of the methods."""

from .video_segmentor import VideoSegmentor

__all__ = ["VideoSegmentor"]
