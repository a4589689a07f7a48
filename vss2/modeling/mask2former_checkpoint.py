"""Published Mask2Former checkpoints and weights of backbones, under the model's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from vss2.checkpoint import LoadReport
from vss2.errors import InputError

from .backbone.mit_checkpoint import is_backbone_file, published_mit_names
from .backbone.resnet_checkpoint import (
    detectron2_names,
    is_resnet_file,
    published_resnet,
    torchvision_names,
)

_BACKBONE = "backbone."
_HEAD = "sem_seg_head."
_HEAD_PARTS = ("pixel_decoder.", "predictor.")
_COUNTER = ".num_batches_tracked"
_NORMALIZATION = ("pixel_mean", "pixel_std")


def published_mask2former_names(
    state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Weights under the names of a full model, and what was left out with the reason.

    Takes the published segmentation models, those of old releases too, and files of a MiT or
    ResNet alone. Counters of batch norm, which have no effect, are left out or added as the model
    wants them.

    Args:
        state: of a file.
        own: of the model.
    """
    counters = {name: value for name, value in own.items() if name.endswith(_COUNTER)}
    if counters:
        weights, ignored = _model_names(state)
        return {**counters, **weights}, ignored
    ignored = {n: "its norms count no batches" for n in state if n.endswith(_COUNTER)}
    weights, more = _model_names({n: value for n, value in state.items() if n not in ignored})
    return weights, ignored | more


def _model_names(
    state: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if is_backbone_file(state):
        ignored = {name: "classifier of ImageNet" for name in state if name.startswith("head.")}
        rest = {name: value for name, value in state.items() if name not in ignored}
        return _prefixed(published_mit_names(rest)), ignored
    if is_resnet_file(state):
        weights, ignored = published_resnet(state)
        return _prefixed(weights), ignored
    ignored = {name: "kept by the config" for name in state if name in _NORMALIZATION}
    backbone, rest = _parts({name: value for name, value in state.items() if name not in ignored})
    if is_resnet_file(backbone):
        backbone = torchvision_names(backbone)
    head = {_head_name(name): value for name, value in rest.items()}
    return _prefixed(backbone) | head, ignored


def published_layout(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A model's weights under the published names, where a ResNet has detectron2's."""
    backbone, rest = _parts(state)
    if is_resnet_file(backbone):
        backbone = detectron2_names(backbone)
    return _prefixed(backbone) | rest


def _parts(
    state: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The backbone's weights without prefix, and the others."""
    backbone = {
        name.removeprefix(_BACKBONE): value
        for name, value in state.items()
        if name.startswith(_BACKBONE)
    }
    rest = {name: value for name, value in state.items() if not name.startswith(_BACKBONE)}
    return backbone, rest


def _prefixed(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {_BACKBONE + name: value for name, value in weights.items()}


def _head_name(name: str) -> str:
    """The present name of a tensor outside the backbone."""
    rest = name.removeprefix(_HEAD)
    if rest != name and not rest.startswith(_HEAD_PARTS):
        name = f"{_HEAD}pixel_decoder.{rest}"  # heads before version 2 were the pixel decoder
    return re.sub(r"\bstatic_query\b", "query_feat", name)


def require_whole_backbone(report: LoadReport) -> None:
    """Refuse weights that leave the backbone partly random.

    Raises:
        InputError: tensors of the backbone are missing; names some.
    """
    missing = [name for name in report.missing if name.startswith(_BACKBONE)]
    if missing:
        found = sum(name.startswith(_BACKBONE) for name in report.loaded)
        raise InputError(
            f"these weights fill {found} of the backbone's {found + len(missing)} tensors; missing "
            f"are {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. Expected are a "
            "published Mask2Former, or an ImageNet file of this backbone"
        )
