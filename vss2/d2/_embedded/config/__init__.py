"""Lazy configs: python files of nested calls that `instantiate` makes into objects."""

from __future__ import annotations

from .instantiate import instantiate
from .lazy import LazyCall, LazyConfig

__all__ = ["LazyCall", "LazyConfig", "instantiate"]
