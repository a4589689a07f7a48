"""From a config node with `_target_` to the object that it describes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ..utils.registry import _convert_target_to_string, locate

__all__ = ["instantiate"]


def instantiate(cfg: Any) -> Any:
    """Make the objects that `cfg` describes.

    A mapping with `_target_` becomes `target(**rest)`, after its values were made in the same way;
    a list becomes the list of what its items make. Anything else comes back as it is, a mapping
    without `_target_` included: what nests below it is not touched. `cfg` is not modified.

    Raises:
        ImportError: a `_target_` string names nothing.
        AssertionError: a `_target_` is not callable.
    """
    if isinstance(cfg, ListConfig):
        return ListConfig([instantiate(item) for item in cfg], flags={"allow_objects": True})
    if isinstance(cfg, list):
        return [instantiate(item) for item in cfg]
    if isinstance(cfg, DictConfig) and dataclasses.is_dataclass(cfg._metadata.object_type):
        return OmegaConf.to_object(cfg)
    if not (isinstance(cfg, Mapping) and "_target_" in cfg):
        return cfg

    kwargs = {str(name): instantiate(value) for name, value in cfg.items()}
    target = kwargs.pop("_target_")
    shown = target
    if isinstance(target, str):
        target = locate(target)
    assert callable(target), f"_target_ {shown} does not define a callable object"
    try:
        return target(**kwargs)
    except TypeError:
        logging.getLogger(__name__).error("Error when instantiating %s!", _name_of(shown))
        raise


def _name_of(target: Any) -> str:
    if isinstance(target, str):
        return target
    try:
        return _convert_target_to_string(target)
    except AttributeError:  # a partial or another callable without a name
        return str(target)
