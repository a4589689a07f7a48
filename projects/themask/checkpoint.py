"""From a checkpoint of stage 1 to the start of stage 2."""

from __future__ import annotations

from collections.abc import Mapping

import torch

STAGE1_STARTS = ("random", "copied")

_PREFIX = "decode_head.predictor."
# What stage 2 has twice; the first of the copies is the norm of the video branch.
_COPIES = {
    "decoder_norm.": ("decoder_norm1.", "decoder_norm2."),
    "class_embed.": ("class_embed.", "class_embed_aux."),
    "mask_embed.": ("mask_embed.", "mask_embed_aux."),
}


def stage1_to_stage2(
    state: Mapping[str, torch.Tensor], start: str
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Weights for stage 2, and what was left out with the reason.

    Anything but the weights of a stage-1 model is returned as it is.

    Args:
        state: weights under the names of a model.
        start: "random": norms and frame branch stay as initialised and `decoder_norm` is dropped,
            as published, so that the class and mask heads lose the norm that they were trained
            with; "copied": they get copies of stage 1's.
    """
    if f"{_PREFIX}decoder_norm.weight" not in state:
        return dict(state), {}
    if start == "random":
        old = [name for name in state if name.startswith(f"{_PREFIX}decoder_norm.")]
        kept = {name: value for name, value in state.items() if name not in old}
        return kept, dict.fromkeys(old, "stage 2 has two norms, which start anew")
    out: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        part = next((part for part in _COPIES if name.startswith(_PREFIX + part)), "")
        rest = name.removeprefix(_PREFIX + part) if part else ""
        out.update(
            {_PREFIX + copy + rest: value for copy in _COPIES.get(part, ())} or {name: value}
        )
    return out, {}
