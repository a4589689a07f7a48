"""Operations that know no model."""

from .drop_path import DropPath

__all__ = ["DropPath"]
