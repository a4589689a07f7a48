"""Models, clips and masks of STCN's tests, and runs through sessions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from vss2.modeling.backbone import ResNet
from vss2.projects.stcn import STCN
from vss2.testing.fixtures import filled_state_dict, image_clip, load_fixture

PIXELS = 1e-3  # share of mask pixels that may differ
STAGES = ("res2", "layer2", "layer3")


def build(depth: int = 50, **options: Any) -> STCN:
    """An STCN as initialised; depth 18 and a small `value_dim` make it small."""
    encoder = ResNet(depth, strides=(1, 2, 2), stage_names=STAGES)
    return STCN(key_encoder=encoder, **options)


def small(seed: int = 0, **options: Any) -> STCN:
    """A small network in eval mode whose masks change from frame to frame."""
    torch.manual_seed(seed)
    model = build(18, **({"key_dim": 16, "value_dim": 32} | options))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        model.decoder.pred.weight.mul_(8)
    return model.eval()


@lru_cache(maxsize=1)
def filled_once(layout: tuple[tuple[str, tuple[int, ...]], ...], seed: int) -> Any:
    """Weights that several tests in turn start from."""
    return filled_state_dict(dict(layout), seed)


def load_filled(model: STCN, description: Mapping[str, Any]) -> STCN:
    layout = {**description["layout"], **description["int_buffers"]}
    key = tuple((name, tuple(shape)) for name, shape in layout.items())
    model.load_state_dict(filled_once(key, description["seed"]))
    return model.eval()


def recorded(name: str) -> tuple[dict[str, Any], dict[str, Any], STCN]:
    """Description, arrays and filled model of fixture `name`."""
    description, arrays = load_fixture(name)
    return description, arrays, load_filled(build(), description)


def clip(frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """uint8 [T, 3, H, W]."""
    return torch.from_numpy(image_clip(frames, height, width, seed)).permute(0, 3, 1, 2)


def recorded_clip(description: Mapping[str, Any]) -> torch.Tensor:
    made = description["input"]["image_clip"]
    return clip(made["frames"], made["height"], made["width"], made["seed"])


def paint(shapes: Mapping[Any, Sequence[Any]], height: int, width: int) -> torch.Tensor:
    """Ids int64 [H, W] of the fixtures' rectangles and discs, later ones on top."""
    y, x = np.mgrid[0:height, 0:width]
    mask = np.zeros((height, width), np.int64)
    for label, (kind, *numbers) in shapes.items():
        if kind == "rect":
            y0, y1, x0, x1 = numbers
            inside = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
        else:
            cy, cx, radius = numbers
            inside = (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
        mask[inside] = int(label)
    return torch.from_numpy(mask)


def run(
    session: Any,
    frames: torch.Tensor,
    masks: Mapping[int, torch.Tensor],
    required: Iterable[int] | None = None,
    output_size: tuple[int, int] | None = None,
) -> list[dict[str, Any]]:
    """The answers of a session to all frames, or to the required ones, and `finish`."""
    wanted = range(len(frames)) if required is None else set(required)
    answers = [
        session.step(frame, mask=masks.get(t), output_size=output_size, need_output=t in wanted)
        for t, frame in enumerate(frames)
    ]
    list(session.finish())
    return [answer for answer in answers if answer is not None]


def stacked(answers: Sequence[Mapping[str, Any]], ids: Sequence[int]) -> torch.Tensor:
    """Probabilities [1 + len(ids), T, H, W], 0 where an object is not known yet."""
    rows = []
    for answer in answers:
        prob = torch.zeros(1 + len(ids), *answer["prob"].shape[-2:])
        prob[0] = answer["prob"][0]
        for position, identity in enumerate(answer["object_ids"]):
            prob[1 + list(ids).index(identity)] = answer["prob"][1 + position]
        rows.append(prob)
    return torch.stack(rows, dim=1)


def masks_of(answers: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    return torch.stack([answer["mask"] for answer in answers])


def assert_near(value: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    error = (value.detach().float() - torch.from_numpy(expected.astype(np.float32))).abs().max()
    assert error <= tolerance, f"largest difference {error:.3g}, allowed {tolerance:.3g}"


def assert_masks(ours: torch.Tensor, expected: np.ndarray, share: float = PIXELS) -> None:
    assert ours.shape == expected.shape
    differ = (ours != torch.from_numpy(expected)).float().mean()
    assert differ <= share, f"{differ:.3g} of the pixels differ"


def gram_error(channels: torch.Tensor) -> float:
    """How far the columns of [64, extra, 7, 7], or its rows, are from orthonormal."""
    flat = channels.detach().flatten(1)
    if flat.shape[0] < flat.shape[1]:
        flat = flat.t()
    return (flat.t() @ flat - torch.eye(flat.shape[1])).abs().max().item()
