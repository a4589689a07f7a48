"""What `vss2 predict` does for models that propagate masks: options, checks, names and colours."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from vss2.data.first_frame import MAX_OBJECTS
from vss2.data.frame_sources import FrameSource
from vss2.data.vos_palette import DAVIS_PALETTE
from vss2.errors import InputError
from vss2.inference import GivenMasks
from vss2.inference.exports import Color, read_palette
from vss2.modeling.meta_arch import VideoMaskPropagator

NUM_IDS = 256
BACKGROUND = 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of mask propagation."""
    group = parser.add_argument_group("objects to follow (models that propagate masks)")
    add = group.add_argument
    add(
        "--mask",
        action="append",
        default=[],
        metavar="PATH",
        help="palette PNG of object ids for the first frame, or a folder of PNGs called as the "
        "frames that they belong to, which add and correct objects; may be given twice",
    )
    add(
        "--max-objects",
        type=int,
        default=MAX_OBJECTS,
        metavar="N",
        help="ids that a mask is believed to hold (default %(default)s)",
    )
    add(
        "--resize-masks",
        action="store_true",
        help="resize masks to the frames' size, nearest pixel; else other sizes are an error",
    )
    add(
        "--resolution",
        type=int,
        metavar="N",
        help="shorter side of what the network sees; masks come back at the frames' own size",
    )


def check_model(args: argparse.Namespace, model: Any) -> bool:
    """Whether `model` propagates masks; says what does not go with its kind.

    Raises:
        InputError: options of the other kind of model, or no mask for this one.
    """
    propagates = isinstance(model, VideoMaskPropagator)
    kind = type(model).__name__
    if propagates:
        if not args.mask:
            raise InputError(
                f"{kind} follows objects: show them with --mask, a palette PNG of object ids for "
                "the first frame."
            )
        for name, instead in (("scores", ""), ("size", ": give --resolution instead")):
            if getattr(args, name):
                raise InputError(f"--{name} is not for {kind}, which propagates masks{instead}.")
        return True
    for name in ("mask", "resize_masks", "resolution"):
        if getattr(args, name):
            raise InputError(
                f"--{name.replace('_', '-')} is for models that propagate masks; {kind} gives "
                "every pixel a class."
            )
    return False


def given_masks(args: argparse.Namespace, source: FrameSource) -> GivenMasks:
    """The masks of `--mask`, with names that are frames of the source."""
    if args.max_objects < 1:
        raise InputError(f"--max-objects must be at least 1, got {args.max_objects}.")
    masks = GivenMasks(args.mask, args.start, args.max_objects, args.resize_masks)
    masks.check_names(source, args.end)
    return masks


def session_options(args: argparse.Namespace, model: VideoMaskPropagator) -> dict[str, Any]:
    """Options of the session: objects may come at any frame, and `--resolution`.

    Raises:
        InputError: the model's session cannot resize.
    """
    known = inspect.signature(model.session_type).parameters
    options: dict[str, Any] = {}
    if "protocol" in known:
        options["protocol"] = "generic"
    if args.resolution is not None:
        if "size" not in known:
            raise InputError(
                f"--resolution: {type(model).__name__} works at the frames' size only."
            )
        if model.session_options.get("scales"):
            raise InputError(
                "--resolution: the config works at several sizes; add model.session.scales=null."
            )
        options["size"] = args.resolution
    return options


def object_names_and_colors(palette_file: str | None = None) -> tuple[list[str], list[Color]]:
    """Names and colours of ids 0 to 255: DAVIS' colours, where a file says nothing else."""
    names = ["background", *(f"object {k}" for k in range(1, NUM_IDS))]
    colors = list(DAVIS_PALETTE)
    if palette_file is not None:
        given_names, given_colors = read_palette(palette_file)
        if len(given_names) > NUM_IDS:
            raise InputError(
                f"The palette {palette_file} has {len(given_names)} entries; ids are 0 to 255."
            )
        names[: len(given_names)] = given_names
        colors[: len(given_colors)] = given_colors
    return names, colors
