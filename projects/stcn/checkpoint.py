"""Checkpoints of STCN: the two published layouts, and ImageNet weights for one encoder."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from typing import TYPE_CHECKING

import torch
from torch import nn

from vss2.checkpoint import LoadReport
from vss2.errors import InputError
from vss2.modeling.backbone.resnet_checkpoint import is_resnet_file

if TYPE_CHECKING:
    from .model import STCN

logger = getLogger(__name__)

FIRST_CONV = "value_encoder.conv1.weight"
UNUSED = (["layer4"], ["fc"])  # of an ImageNet file


def published_stcn_names(
    state: Mapping[str, torch.Tensor], model: STCN
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Weights under the names of `model`, and what was left out with the reason.

    Takes published checkpoints and torchvision's ImageNet files. A file of stage 0 knows no other
    objects: the channel that sees them is zeros for inference, and begins with an orthogonal
    matrix where training goes on (`model.training`).

    Raises:
        InputError: a network of several objects for one of stage 0; an ImageNet file that is of
            neither encoder's depth.
    """
    state, ignored = _imagenet_names(state, model)
    out = dict(state)
    first = out.get(FIRST_CONV)
    channels = model.value_encoder.conv1.in_channels
    if first is None or first.shape[1] == channels:
        return out, ignored
    if first.shape[1] > channels:
        raise InputError(
            f"these weights are of a network for several objects ({FIRST_CONV} has "
            f"{first.shape[1]} input channels), the model is one of stage 0 for a single object "
            f"({channels}): set model.single_object=False"
        )
    if first.shape[1] == 3:
        # An ImageNet file: beyond RGB the encoder's own start serves.
        own = model.value_encoder.conv1.weight.detach()[:, 3:].to(first)
        out[FIRST_CONV] = torch.cat([first, own], dim=1)
        return out, ignored
    extra = first.new_zeros(first.shape[0], channels - first.shape[1], *first.shape[2:])
    if model.training:
        nn.init.orthogonal_(extra)
    out[FIRST_CONV] = torch.cat([first, extra], dim=1)
    logger.info(
        "weights of stage 0: the channel of the other objects' masks starts as %s",
        "an orthogonal matrix, for training" if model.training else "zeros, for inference",
    )
    return out, ignored


def _imagenet_names(
    state: Mapping[str, torch.Tensor], model: STCN
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Names of torchvision's ResNets to the encoders' own, and what of those files is not used.

    They are told by their last stage and classifier. A file without a prefix is for the encoder
    whose blocks it has.
    """
    if is_resnet_file(state):
        state = {_encoder_of(state, model) + name: value for name, value in state.items()}
    if not any(name.split(".")[1:2] in UNUSED for name in state):
        return dict(state), {}
    stages = dict(zip(("layer1", "layer2", "layer3"), model.key_encoder.stage_names, strict=True))
    out, ignored = {}, {}
    for name, value in state.items():
        encoder, _, rest = name.partition(".")
        stage, dot, leaf = rest.partition(".")
        if [stage] in UNUSED:
            ignored[name] = "the encoders end at stride 16"
        elif leaf.endswith("num_batches_tracked"):
            ignored[name] = "counts the batches of another training"
        elif encoder == "key_encoder":
            out[f"{encoder}.{stages.get(stage, stage)}{dot}{leaf}"] = value
        else:
            out[name] = value
    return out, ignored


def _encoder_of(state: Mapping[str, torch.Tensor], model: STCN) -> str:
    """Prefix of the encoder whose blocks at stride 16 a ResNet file has, the key encoder first."""
    found = {n: v.shape for n, v in state.items() if _is_weight(n, "layer3")}
    for prefix, stages in (
        ("key_encoder.", model.key_encoder.stage_names),
        ("value_encoder.", model.value_encoder.stage_names),
    ):
        blocks = model.get_submodule(prefix + stages[2]).state_dict()
        own = {f"layer3.{n}": v.shape for n, v in blocks.items() if n.endswith("weight")}
        if found == own:
            return prefix
    raise InputError(
        "these weights are of a ResNet that is neither the key encoder's nor the value encoder's: "
        "give files of their depths"
    )


def _is_weight(name: str, stage: str) -> bool:
    return name.startswith(f"{stage}.") and name.endswith("weight")


def require_whole_encoders(report: LoadReport) -> None:
    """Raise InputError when a part of the model was filled and another tensor of it was not.

    ImageNet weights fill one encoder; biases that torchvision's convolutions do not have, the
    counts of batches and the fuser keep their start.
    """
    loaded = {name.split(".")[0] for name in report.loaded}
    missing = [
        name
        for name in report.missing
        if name.split(".")[0] in loaded
        and not name.endswith("num_batches_tracked")
        and not _without_imagenet(name)
    ]
    if missing:
        raise InputError(
            f"the checkpoint fills {', '.join(sorted(loaded))} in part only: {len(missing)} "
            f"tensors are missing, such as {missing[0]}"
        )


def _without_imagenet(name: str) -> bool:
    """Whether ImageNet files of the value encoder lack this tensor of it."""
    if not name.startswith("value_encoder."):
        return False
    owner = name.split(".")[-2]
    return ".fuser." in name or (
        name.endswith(".bias") and (owner.startswith("conv") or name.endswith("downsample.0.bias"))
    )
