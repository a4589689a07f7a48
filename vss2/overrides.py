"""Strict `key=value` overrides: a mistyped key is an error, not a new key."""

from __future__ import annotations

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

from .errors import InputError, did_you_mean

_CREATE = (OverrideType.ADD, OverrideType.FORCE_ADD)
_Node = DictConfig | ListConfig


def apply_overrides(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """Apply overrides in hydra's grammar to `cfg`, in place.

    `a.b=1` changes a key that exists, `+a.b=1` may also create it, `~a.b` deletes it. A dict
    merges into the old one key by key, a list replaces the old one, `sizes.0=3` sets an item. A
    float without a fraction (1e3) becomes an int where the old value is one.

    Returns:
        `cfg`.

    Raises:
        InputError: bad grammar, an unknown key (close matches are listed), a key below something
            that is no group, or the word None (the empty value is `null`).
    """
    parser = OverridesParser.create()
    for text in overrides:
        override = _parse(parser, text)
        if override.type == OverrideType.DEL:
            _delete(cfg, override, text)
            continue
        if _is_bare_none(override):
            key = override.get_key_element()
            raise InputError(
                f"override {text!r}: write {key}=null for the empty value "
                f"(or {key}='\"None\"' for the word)"
            )
        _set(cfg, override.key_or_group, override.value(), text, override.type in _CREATE)
    return cfg


def _parse(parser: OverridesParser, text: str) -> Override:
    try:
        override = parser.parse_override(text)
    except HydraException as e:
        reason = str(e).strip().splitlines()[0]
        raise InputError(
            f"cannot read override {text!r}: {reason}. Expected key=value, +key=value or ~key; "
            "quote a value that holds spaces, commas, brackets or '='"
        ) from e
    if override.is_sweep_override():
        raise InputError(f"override {text!r} gives several values; write a list as [1,2]")
    if override.package is not None:
        raise InputError(f"override {text!r}: '@' has no meaning in a key")
    if override.type == OverrideType.DEL and "=" in text:
        raise InputError(f"override {text!r}: to delete a key write ~key, without a value")
    return override


def _is_bare_none(override: Override) -> bool:
    return override.value() == "None" and override.get_value_element_as_str() == "None"


def _delete(cfg: DictConfig, override: Override, text: str) -> None:
    *path, last = override.key_or_group.split(".")
    parent = _walk(cfg, path, text, create=False)
    if not _has(parent, last):
        raise _unknown(cfg, parent, path, last, text, hint="")
    del parent[_key(parent, last)]


def _set(cfg: DictConfig, key: str, value: Any, text: str, create: bool) -> None:
    *path, last = key.split(".")
    parent = _walk(cfg, path, text, create)
    if not _has(parent, last):
        if not create or isinstance(parent, ListConfig):
            raise _unknown(cfg, parent, path, last, text, hint=f" To add a new key write +{text}.")
        parent[last] = value
        return
    old = _old_value(parent, last)
    if isinstance(old, DictConfig) and isinstance(value, dict):
        for name, item in value.items():
            _set(cfg, f"{key}.{name}", item, text, create)
        return
    if isinstance(old, DictConfig) and not (value is None or _is_interpolation(value)):
        raise InputError(
            f"override {text!r}: {key!r} is a group of keys "
            f"({_listed(old)}), it cannot become {value!r}"
        )
    if type(old) is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    parent[_key(parent, last)] = value


def _walk(cfg: DictConfig, path: list[str], text: str, create: bool) -> _Node:
    """The node at `path`; a missing part is made where `create`, else an error."""
    node: _Node = cfg
    for depth, name in enumerate(path):
        if not _has(node, name):
            if not create or isinstance(node, ListConfig):
                hint = f" To add a new key write +{text}."
                raise _unknown(cfg, node, path[:depth], name, text, hint)
            node[name] = {}
        child = _old_value(node, name)
        if not isinstance(child, (DictConfig, ListConfig)):
            here = ".".join(path[: depth + 1])
            raise InputError(f"override {text!r}: {here!r} is {child!r}, it has no keys below it")
        node = child
    return node


def _unknown(
    cfg: DictConfig, parent: _Node, path: list[str], name: str, text: str, hint: str
) -> InputError:
    full = ".".join([*path, name])
    if isinstance(parent, ListConfig):
        return InputError(
            f"override {text!r}: {'.'.join(path)!r} is a list of {len(parent)} items, "
            f"expected an index below {len(parent)} instead of {name!r}"
        )
    keys = [*_all_keys(cfg)]
    same_leaf = [key for key in keys if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]][:3]
    close = (
        f" Did you mean {', '.join(map(repr, same_leaf))}?"
        if same_leaf
        else did_you_mean(full, keys)
    )
    known = "" if close or not path else f" Known there: {_listed(parent)}."
    return InputError(f"override {text!r}: the config has no key {full!r}.{close}{known}{hint}")


def _all_keys(node: Any, prefix: str = "") -> list[str]:
    """Dotted names of everything in `node`; interpolations are not followed."""
    out = []
    for key in list(node.keys()) if isinstance(node, DictConfig) else range(len(node)):
        name = prefix + str(key)
        out.append(name)
        child = node._get_node(key)
        if isinstance(child, (DictConfig, ListConfig)) and not (
            child._is_none() or child._is_interpolation() or child._is_missing()
        ):
            out += _all_keys(child, f"{name}.")
    return out


def _has(node: _Node, name: str) -> bool:
    if isinstance(node, ListConfig):
        return name.isdigit() and int(name) < len(node)
    return name in node.keys()  # noqa: SIM118 (`in` would resolve interpolations)


def _key(node: _Node, name: str) -> Any:
    return int(name) if isinstance(node, ListConfig) else name


def _old_value(node: _Node, name: str) -> Any:
    """The value at `name`; None where it is mandatory and not yet given, or does not resolve."""
    try:
        return node[_key(node, name)]
    except OmegaConfBaseException:
        return None


def _is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _listed(node: _Node, limit: int = 8) -> str:
    names = [str(key) for key in node] if isinstance(node, DictConfig) else []
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
