"""Spellings of MiT weights that are in circulation, turned into those of the published files."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

_NEWER = re.compile(r"^layers\.(?P<stage>\d)\.(?P<part>[012])\.(?P<rest>.+)$")
_NEWER_BLOCK = (
    (r"attn\.attn\.out_proj\.", "attn.proj."),
    (r"ffn\.layers\.0\.", "mlp.fc1."),
    (r"ffn\.layers\.1\.", "mlp.dwconv.dwconv."),
    (r"ffn\.layers\.4\.", "mlp.fc2."),
)


def is_backbone_file(names: Mapping[str, object]) -> bool:
    """Whether these are the weights of a MiT alone, without a `backbone.` prefix."""
    return any(name.startswith(("patch_embed1.", "layers.0.0.")) for name in names)


def published_mit_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a MiT alone under the published names (`patch_embed1.proj.weight`, ...).

    Understands the published ImageNet files as they are, and the naming of newer mmsegmentation
    releases (`layers.<stage>.<part>...`), where query, key and value are one tensor
    `in_proj_{weight,bias}` and the two linear layers of the feed-forward are 1x1 convolutions.
    """
    out: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        match = _NEWER.match(name)
        if match is None:
            out[name] = value
            continue
        stage, part, rest = int(match["stage"]) + 1, match["part"], match["rest"]
        if part == "0":
            out[f"patch_embed{stage}.{rest.replace('projection.', 'proj.')}"] = value
        elif part == "2":
            out[f"norm{stage}.{rest}"] = value
        else:
            out.update(_block_entry(f"block{stage}.", rest, value))
    return out


def _block_entry(prefix: str, rest: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    index, name = rest.split(".", 1)
    prefix = f"{prefix}{index}."
    if name.startswith("attn.attn.in_proj_"):
        kind, channels = name.rsplit("_", 1)[1], value.shape[0] // 3
        return {
            f"{prefix}attn.q.{kind}": value[:channels],
            f"{prefix}attn.kv.{kind}": value[channels:],
        }
    for pattern, replacement in _NEWER_BLOCK:
        name = re.sub(pattern, replacement, name)
    if name in ("mlp.fc1.weight", "mlp.fc2.weight") and value.ndim == 4:
        value = value.flatten(1)
    return {prefix + name: value}
