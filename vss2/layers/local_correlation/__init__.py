"""The best matches of every cell of a feature map in other maps, within a radius."""

from .op import Correlation, local_correlation, read_labels
from .packing import pack_rows

__all__ = ["Correlation", "local_correlation", "pack_rows", "read_labels"]
