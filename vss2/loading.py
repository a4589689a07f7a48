"""From a config and a checkpoint to a model that is ready to run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .checkpoint import WeightFiles, load_weights
from .config import apply_overrides, load_config
from .d2.config import instantiate


def default_device(device: str | torch.device | None = None) -> torch.device:
    """`device`, or cuda if present, else cpu."""
    if device is None or device == "":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def load_model(
    config: str,
    weights: WeightFiles | None,
    overrides: Sequence[str],
    device: str | torch.device | None,
) -> nn.Module:
    """See `vss2.load`."""
    cfg = apply_overrides(load_config(config), list(overrides))
    model = instantiate(cfg.model).eval()  # as which it takes the weights
    if weights is not None:
        load_weights(model, weights, strict=True)
    model.cfg = cfg
    if device is None:
        device = cfg.get("train", {}).get("device")
    return model.to(default_device(device))
