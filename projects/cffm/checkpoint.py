"""Checkpoints of the published layout, beyond what SegFormer's already are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from logging import getLogger

import torch

from vss2.errors import InputError
from vss2.layers.focal_windows import relative_index
from vss2.modeling.segformer import published_segformer_names

from .focal import EXPAND, REFERENCE_GRIDS, TARGET_GRID, WINDOW

logger = getLogger(__name__)

_INDEX = re.compile(r"\.attn\.(relative_position_index(?:_0|_clips_\d+)?|valid_ind_rolled)$")


def index_constants() -> dict[str, torch.Tensor]:
    """The integer buffers of published attention modules, by their last name.

    `valid_ind_rolled` holds the positions of the surround in the four shifted squares.
    """
    position = torch.arange(WINDOW)
    near = {1: position >= WINDOW - EXPAND, -1: position < EXPAND}
    squares = [
        near[rows][:, None] | near[columns][None, :]
        for rows, columns in ((1, 1), (1, -1), (-1, 1), (-1, -1))
    ]
    return {
        "relative_position_index": relative_index(WINDOW, WINDOW),
        "relative_position_index_0": relative_index(WINDOW, TARGET_GRID.kernel),
        "valid_ind_rolled": torch.stack(squares).flatten().nonzero().flatten(),
    } | {
        f"relative_position_index_clips_{k}": relative_index(WINDOW, grid.kernel)
        for k, grid in enumerate(REFERENCE_GRIDS)
    }


def with_index_constants(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A model's weights with the index buffers of the published layout."""
    constants = index_constants()
    out = dict(state)
    for name in state:
        prefix, found, _ = name.rpartition(".attn.relative_position_bias_table")
        if found and name.endswith(found):
            # The prototype block never had more than the first of them.
            names = ["relative_position_index"] if "decoder_swin" in prefix else list(constants)
            out |= {f"{prefix}.attn.{n}": constants[n].clone() for n in names}
    return out


def published_cffm_names(
    state: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Weights under the names of a full model, and what was left out with the reason.

    Takes ImageNet files of the backbone and published checkpoints of CFFM and CFFM++. Their index
    buffers are constants that this code computes; they are compared and left out.

    Raises:
        InputError: an index buffer of another shape: the checkpoint has another window geometry.
    """
    named, ignored = published_segformer_names(state)
    constants = index_constants()
    for name in [name for name in named if _INDEX.search(name)]:
        value, expected = named.pop(name), constants.get(name.rsplit(".", 1)[1])
        if expected is None or value.shape != expected.shape:
            raise InputError(
                f"{name} in the checkpoint has the shape {tuple(value.shape)}, this model's is "
                f"{None if expected is None else tuple(expected.shape)}: its windows are others"
            )
        if torch.equal(value.long().cpu(), expected):
            ignored[name] = "index constant, equal to the computed one"
        else:
            ignored[name] = "index constant of other values; the computed one is used"
            logger.warning("%s: %s", name, ignored[name])
    return named, ignored
