"""Weights of the frame encoders in the layouts of their publishers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from logging import getLogger
from typing import NamedTuple

import torch

from vss2.errors import InputError

from .encoder import RECORD, FrameEncoder, warmed_up

logger = getLogger(__name__)


class Layout(NamedTuple):
    """How a publisher names the tensors of the encoder."""

    name: str
    prefix: str
    padding: str = "zeros"
    renames: tuple[tuple[str, str], ...] = ()


# The first one whose prefix occurs is taken; DistributedDataParallel's "module." is off already.
LAYOUTS = (
    Layout("fine-grained", "online_encoder."),
    # Some have a module for the padding in front of a convolution, which is then number 1.
    Layout("crw", "encoder.model.", "reflect", ((r"(conv\d)\.1\.weight$", r"\1.weight"),)),
    Layout("moco", "encoder_q."),
    Layout(
        "vfs",
        "backbone.",
        renames=(
            (r"(^|\.)conv(\d)\.conv\.", r"\1conv\2."),
            (r"(^|\.)conv(\d)\.bn\.", r"\1bn\2."),
            (r"downsample\.conv\.", "downsample.0."),
            (r"downsample\.bn\.", "downsample.1."),
        ),
    ),
    Layout("simsiam or pixpro", "encoder."),
    Layout("torchvision", ""),
)


def encoder_weights(
    encoder: FrameEncoder, state: Mapping[str, torch.Tensor], bn_warmup: bool
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Weights for one encoder, and the names that were left out with the reason.

    Weights that vss2 has saved say themselves whether their statistics were warmed up; they are
    taken as they are.

    Args:
        encoder: what the weights are for.
        state: the content of one file, in any of `LAYOUTS`, or an encoder's own.
        bn_warmup: let weights of a published layout take the step of `warmed_up`.

    Raises:
        InputError: weights of an encoder that pads in another way.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    layout = next(found for found in LAYOUTS if any(n.startswith(found.prefix) for n in state))
    if encoder.padding_mode != layout.padding and layout.name != "torchvision":
        raise InputError(
            f"these weights are of the layout {layout.name}, whose convolutions pad with "
            f"{layout.padding}; set padding_mode={layout.padding!r} on the encoder that takes them"
        )
    own, named, ignored = encoder.state_dict(), {}, {}
    for name, value in state.items():
        short = name.removeprefix(layout.prefix)
        if short == name and layout.prefix:
            ignored[name] = "not of the encoder"
            continue
        for pattern, replacement in layout.renames:
            short = re.sub(pattern, replacement, short)
        if short not in own and short.split(".")[0] in ("layer4", "fc"):
            ignored[name] = "after the feature"
            continue
        named[short] = value
    return _completed(encoder, named, own, layout, bn_warmup), ignored


def _completed(
    encoder: FrameEncoder,
    named: dict[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    layout: Layout,
    bn_warmup: bool,
) -> dict[str, torch.Tensor]:
    """With the counters of norms that old files lack, and with the record of the warm-up."""
    if RECORD in named:
        if bool(named[RECORD]) != bn_warmup:
            logger.warning(
                "bn_warmup is %s, but these weights were saved by vss2 with statistics that are "
                "%swarmed up; they stay as they are",
                bn_warmup,
                "" if bool(named[RECORD]) else "not ",
            )
        return named
    counters = {name: own[name] for name in own if name.endswith("num_batches_tracked")}
    named = {**{name: torch.zeros_like(value) for name, value in counters.items()}, **named}
    named[RECORD] = torch.tensor(False)
    fits = named.keys() == own.keys() and all(named[n].shape == own[n].shape for n in own)
    if not bn_warmup or not fits:  # what does not fit is refused, or reported, where it is loaded
        return named
    logger.info("weights of the layout %s: running statistics warmed up, as published", layout.name)
    return warmed_up(encoder, named)
