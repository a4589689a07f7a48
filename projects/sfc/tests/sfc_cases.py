"""Published checkpoints of the fixtures, and the models that take them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vss2.checkpoint import load_weights
from vss2.projects.sfc import SFC, FrameEncoder
from vss2.testing.fixtures import filled_state_dict, load_fixture

FINE = {"fine-grained": "zeros", "crw": "reflect"}


@cache
def layouts() -> dict[str, dict[str, Any]]:
    """Of every publisher, with `checkpoint_root_key`, `layout` and `int_buffers`."""
    description, _ = load_fixture("sfc_encoder")
    return description["variants"]


def published_state(variant: str) -> dict[str, torch.Tensor]:
    """The weights of a publisher, filled by the fixtures' rule; what is left out is 0."""
    described = layouts()[variant]
    layout = {**described["layout"], **described["int_buffers"]}
    used = {name: shape for name, shape in layout.items() if "layer4." not in name}
    filled = filled_state_dict(used)
    return {name: filled.get(name, torch.zeros(shape)) for name, shape in layout.items()}


def published_file(folder: Path, variant: str, state: Mapping[str, torch.Tensor]) -> Path:
    """A file of the form in which the publisher wraps `state`."""
    path = folder / f"{variant}.pth"
    root = layouts()[variant]["checkpoint_root_key"]
    torch.save(dict(state) if root is None else {root: dict(state)}, path)
    return path


def part_of(variant: str) -> str:
    return "fine" if variant in FINE else "semantic"


def encoder_for(variant: str) -> FrameEncoder:
    return FrameEncoder(18, FINE[variant]) if variant in FINE else FrameEncoder(50)


def published_model(folder: Path, *variants: str, **options: Any) -> SFC:
    """A model with the weights of one or two publishers, in eval mode."""
    model = SFC(**{part_of(v): encoder_for(v) for v in variants}, **options)
    files = {part_of(v): published_file(folder, v, published_state(v)) for v in variants}
    load_weights(model, files if len(files) > 1 else next(iter(files.values())), strict=True)
    return model.eval()
