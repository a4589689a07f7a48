"""Spellings of ResNet weights that are in circulation, turned into torchvision's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

# detectron2's names, in the order in which they are rewritten.
_DETECTRON2 = (
    (r"^stem\.", ""),
    (r"^res(\d)\.", lambda match: f"layer{int(match[1]) - 1}."),
    (r"\bshortcut\.norm\.", "downsample.1."),
    (r"\bshortcut\.", "downsample.0."),
    (r"\bconv(\d)\.norm\.", r"bn\1."),
)
# And torchvision's.
_TORCHVISION = (
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\bdownsample\.1\.", "shortcut.norm."),
    (r"\bdownsample\.0\.", "shortcut."),
    (r"\bbn(\d)\.", r"conv\1.norm."),
)
_FIRST = ("conv1.weight", "stem.conv1.weight")
_CLASSIFIER = ("fc.", "stem.fc.")


def is_resnet_file(names: Mapping[str, object]) -> bool:
    """Whether these are the weights of a ResNet alone, without a prefix."""
    return any(name in names for name in _FIRST)


def torchvision_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a ResNet alone under torchvision's names (`layer1.0.conv1.weight`, ...).

    Understands torchvision's own and detectron2's (`res2.0.conv1.norm.weight`, ...); a classifier
    keeps its name.
    """
    out = {}
    for name, value in state.items():
        for pattern, replacement in _DETECTRON2:
            name = re.sub(pattern, replacement, name)
        out[name] = value
    return out


def published_resnet(
    state: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """`torchvision_names` without the classifier; and what was left out, with the reason."""
    ignored = {name: "classifier of ImageNet" for name in state if name.startswith(_CLASSIFIER)}
    rest = {name: value for name, value in state.items() if name not in ignored}
    return torchvision_names(rest), ignored


def detectron2_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The reverse of `torchvision_names`: weights of a ResNet alone as detectron2 spells them."""
    out = {}
    for name, value in state.items():
        if not name.startswith("layer"):
            name = f"stem.{name}"
        for pattern, replacement in _TORCHVISION:
            name = re.sub(pattern, replacement, name)
        out[name] = value
    return out
