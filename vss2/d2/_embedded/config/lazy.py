"""`LazyCall` describes a call; `LazyConfig` loads, saves and overrides configs."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cloudpickle
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf, SCMode, read_write
from omegaconf.errors import ValidationError

from ..utils.file_io import PathManager
from ..utils.registry import _convert_target_to_string
from .imports import cast_to_config, run_config_file

__all__ = ["LazyCall", "LazyConfig"]

_EXTENSIONS = (".py", ".yaml", ".yml")


class LazyCall:
    """`LazyCall(target)(**kwargs)` describes `target(**kwargs)` as a config node.

    Values may be config nodes themselves. The node holds the target under `_target_`; a dataclass
    is held by its dotted name, because omegaconf would take it for a schema.
    """

    def __init__(self, target: Callable[..., Any] | str | Mapping[str, Any]) -> None:
        if not (callable(target) or isinstance(target, (str, Mapping))):
            raise TypeError(
                f"The target of LazyCall must be a callable, its name, or a config that gives a "
                f"callable; got {target!r}."
            )
        self._target = target

    def __call__(self, **kwargs: Any) -> DictConfig:
        target: Any = self._target
        if dataclasses.is_dataclass(target):
            target = _convert_target_to_string(target)
        content: dict[Any, Any] = {**kwargs, "_target_": target}
        return DictConfig(content, flags={"allow_objects": True})


class LazyConfig:
    """Loading, saving and overriding of lazy configs. All methods are static."""

    @staticmethod
    def load_rel(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """`load` of a file whose name is relative to the source file of the caller."""
        frame = inspect.currentframe()
        assert frame is not None, "load_rel needs an interpreter with stack frames."
        assert frame.f_back is not None, "load_rel needs a caller."
        caller = frame.f_back.f_code.co_filename
        assert not caller.startswith("<"), f"load_rel cannot find the file of its caller {caller}."
        return LazyConfig.load(os.path.join(os.path.dirname(caller), filename), keys)

    @staticmethod
    def load(filename: str, keys: str | tuple[str, ...] | None = None) -> Any:
        """Load a config file, anew each time.

        Args:
            filename: a `.py` file, which is executed, or a `.yaml` / `.yml` file, whose tags are
                executed: load what you trust.
            keys: None gives a `DictConfig` of every public dict or config in the file; a name
                gives its value, a tuple of names a tuple of values. A dict becomes `DictConfig`.

        Raises:
            ValueError: another extension.
            FileNotFoundError: no such file.
            SyntaxError: a `.py` file that is not Python.
            KeyError: one of `keys` is not in the file.
        """
        filename = filename.replace("/./", "/")
        if os.path.splitext(filename)[1] not in _EXTENSIONS:
            raise ValueError(f"Config file {filename} must end in one of {', '.join(_EXTENSIONS)}.")
        content: Any
        if filename.endswith(".py"):
            content = run_config_file(filename)
        else:
            with PathManager.open(filename) as file:
                content = OmegaConf.create(yaml.unsafe_load(file), flags={"allow_objects": True})
        if isinstance(keys, str):
            return cast_to_config(content[keys])
        if keys is not None:
            return tuple(cast_to_config(content[key]) for key in keys)
        if not filename.endswith(".py"):
            return content
        public = {
            name: cast_to_config(value)
            for name, value in content.items()
            if isinstance(value, (dict, DictConfig, ListConfig)) and not name.startswith("_")
        }
        return DictConfig(public, flags={"allow_objects": True})

    @staticmethod
    def save(cfg: Any, filename: str) -> None:
        """Write a config as yaml, with keys sorted and interpolations as they stand.

        Callable targets are written by name. What yaml cannot hold never raises: a warning is
        logged, and `<filename>.pkl` holds the config as cloudpickle writes it. Tuples come back as
        lists.
        """
        logger = logging.getLogger(__name__)
        try:
            cfg = copy.deepcopy(cfg)
        except Exception as error:
            logger.debug("The config is saved with its objects, not with names: %s", error)
        else:
            _name_targets(cfg)

        text = None
        loadable = False
        try:
            text = yaml.dump(
                OmegaConf.to_container(
                    cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE
                ),
                default_flow_style=None,
                allow_unicode=True,
                width=9999,
            )
        except Exception:
            logger.exception("Unable to write the config as yaml to %s. Error:", filename)
        if text is not None:
            with PathManager.open(filename, "w") as file:
                file.write(text)
            loadable = _is_loadable(text)
            if not loadable:
                logger.warning(
                    "The config contains objects that yaml cannot hold: %s is human-readable but "
                    "cannot be loaded.",
                    filename,
                )
        if not loadable:
            _save_pickle(cfg, filename + ".pkl", logger)

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: list[str]) -> DictConfig:
        """Change `cfg` by overrides in hydra's grammar, such as `"train.max_iter=100"`.

        Keys that do not exist are created, dicts are merged, lists are replaced.

        Returns:
            `cfg`, changed in place.

        Raises:
            hydra.errors.OverrideParseException: not in the grammar.
            NotImplementedError: a deletion (`~key`).
            omegaconf.errors.ValidationError: a sweep (`key=1,2`).
            KeyError: the key goes on below a value that is no config.
        """
        for override in OverridesParser.create().parse_overrides(overrides):
            if override.is_delete():
                raise NotImplementedError(
                    f"Override {override.input_line}: deletion is not supported."
                )
            if override.is_sweep_override():
                raise ValidationError(f"Override {override.input_line}: a sweep is no value.")
            key = override.key_or_group
            for parent in _parents(key):
                value = OmegaConf.select(cfg, parent, default=None)
                if value is None:
                    break
                if not OmegaConf.is_config(value):
                    raise KeyError(
                        f"Trying to update key {key}, but {parent} is not a config, but has type "
                        f"{type(value)}."
                    )
            OmegaConf.update(cfg, key, override.value(), merge=True)
        return cfg


def _parents(key: str) -> Iterator[str]:
    """`a`, `a.b` for `a.b.c`."""
    parts: Sequence[str] = key.split(".")
    for length in range(1, len(parts)):
        yield ".".join(parts[:length])


def _name_targets(cfg: Any) -> None:
    """Replace the callable `_target_`s in a config by their names, in place."""
    if not OmegaConf.is_config(cfg) or cfg._is_none() or cfg._is_missing():
        return
    if cfg._is_interpolation():
        return
    keys = list(cfg) if isinstance(cfg, DictConfig) else range(len(cfg))
    for key in keys:
        if OmegaConf.is_missing(cfg, key) or OmegaConf.is_interpolation(cfg, key):
            continue
        if key == "_target_" and callable(cfg[key]):
            try:
                name = _convert_target_to_string(cfg[key])
            except AttributeError:  # a partial or another callable without a name
                continue
            with read_write(cfg):
                cfg[key] = name
        else:
            _name_targets(cfg[key])


def _is_loadable(text: str) -> bool:
    try:
        yaml.unsafe_load(text)
    except Exception:
        return False
    return True


def _save_pickle(cfg: Any, filename: str, logger: logging.Logger) -> None:
    try:
        with PathManager.open(filename, "wb") as file:
            cloudpickle.dump(cfg, file)
    except Exception:
        logger.exception("Unable to pickle the config to %s. Error:", filename)
    else:
        logger.warning("The config is saved with cloudpickle at %s.", filename)
