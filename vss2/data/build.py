"""Loaders of training clips and evaluation frames, from the names of data sets and a mapper."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

import vss2.data.datasets  # noqa: F401  (registers the built-in data sets)
from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.d2.utils import comm
from vss2.data.loaders import EvaluationLoader, FrameDataset, TrainLoader, VideoDict
from vss2.data.problems import check_on_error, collected_problems
from vss2.data.samplers import VideoInferenceSampler
from vss2.errors import InputError, did_you_mean

__all__ = [
    "TrainLoader",
    "VideoInferenceSampler",
    "build_test_loader",
    "build_train_loader",
    "get_video_dicts",
]

logger = logging.getLogger(__name__)

DatasetSpec = str | Sequence[str] | Sequence[VideoDict]

_NAMES_IN_LOG = 20


def get_video_dicts(names: str | Sequence[str]) -> list[VideoDict]:
    """Video dicts of one registered data set, or of several one after the other.

    A data set whose metadata has a `label_mapping` gives it to those of its videos that name none.

    Raises:
        InputError: a name is not registered, or a data set has no videos.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise InputError("No data set is named.")
    videos: list[VideoDict] = []
    for name in names:
        known = DatasetCatalog.list()
        if name not in known:
            hint = did_you_mean(name, known) or f" Known: {', '.join(sorted(known))}."
            raise InputError(f"Unknown data set {name!r}.{hint}")
        found = DatasetCatalog.get(name)
        if not found:
            raise InputError(f"The data set {name!r} has no videos.")
        mapping = MetadataCatalog.get(name).get("label_mapping", None)
        videos.extend(found if mapping is None else ({"label_mapping": mapping} | v for v in found))
    return videos


def _resolve(dataset: DatasetSpec) -> list[VideoDict]:
    """Checked video dicts of `dataset`: a name, names, or video dicts themselves."""
    if isinstance(dataset, str):
        videos = get_video_dicts(dataset)
    else:
        items = list(dataset)
        if all(isinstance(item, str) for item in items):
            videos = get_video_dicts([str(item) for item in items])
        elif all(isinstance(item, Mapping) for item in items):
            videos = [dict(item) for item in items if isinstance(item, Mapping)]
        else:
            raise InputError("A data set is a name, a list of names or a list of video dicts.")
    for video in videos:
        if not video.get("frames"):
            raise InputError(f"The video {video.get('video_id')!r} has no frames.")
    return videos


def _identity(batch: list[Any]) -> list[Any]:
    return batch


def _resolve_skipping(dataset: DatasetSpec) -> list[VideoDict]:
    """As `_resolve`, but leaves out videos that cannot be listed, and logs them."""
    with collected_problems() as problems:
        videos = _resolve(dataset)
    if problems:
        more = len(problems) - _NAMES_IN_LOG
        logger.warning(
            "%d faults in the list of training videos; what they spoil is left out:\n  %s%s",
            len(problems),
            "\n  ".join(str(error) for error in problems[:_NAMES_IN_LOG]),
            f"\n  and {more} more" if more > 0 else "",
        )
    return videos


def _long_enough(videos: Sequence[VideoDict], min_frames: int) -> list[VideoDict]:
    """The videos with at least `min_frames` frames; logs those left out."""
    kept = [video for video in videos if len(video["frames"]) >= min_frames]
    short = [str(video["video_id"]) for video in videos if len(video["frames"]) < min_frames]
    if not kept:
        raise InputError(
            f"No video is long enough to train on: a clip needs {min_frames} frames, the longest "
            f"of {len(videos)} videos has {max((len(v['frames']) for v in videos), default=0)}."
        )
    if short:
        more = f" and {len(short) - _NAMES_IN_LOG} more" if len(short) > _NAMES_IN_LOG else ""
        logger.warning(
            "%d of %d videos have fewer than %d frames and are left out: %s%s.",
            len(short),
            len(videos),
            min_frames,
            ", ".join(short[:_NAMES_IN_LOG]),
            more,
        )
    return kept


def _check_workers(num_workers: int) -> int:
    if int(num_workers) < 0:
        raise InputError(f"num_workers must be >= 0, got {num_workers}.")
    return int(num_workers)


def build_train_loader(
    *,
    dataset: DatasetSpec,
    mapper: Callable[..., Any],
    total_batch_size: int,
    num_workers: int = 0,
    seed: int | None = None,
    prefetch_factor: int = 2,
    pin_memory: bool = False,
    on_error: str = "error",
) -> TrainLoader:
    """Loader of training clips: one clip per video and pass, shuffled, without end.

    Args:
        dataset: registered name, list of names, or list of video dicts.
        mapper: (video dict, generator) -> sample; its `min_frames`, where it has one, says which
            videos are too short.
        total_batch_size: clips per iteration over all ranks; divisible by their number.
        num_workers: worker processes per rank.
        seed: of order and content; None or negative draws one that all ranks share.
        prefetch_factor: batches that each worker prepares ahead.
        pin_memory: copy samples to pinned memory, for CUDA.
        on_error: what a fault in the data does: "error" stops the run; "skip" leaves out videos
            that cannot be listed, draws another video for a clip that cannot be read, and logs
            and counts what was passed over (`TrainLoader.skipped`).

    Raises:
        InputError: unknown data set, no video that is long enough, no labels at all, a batch size
            that the ranks cannot share evenly, or an unknown `on_error`.
    """
    check_on_error(on_error)
    world_size = comm.get_world_size()
    total_batch_size = int(total_batch_size)
    if total_batch_size < 1 or total_batch_size % world_size:
        raise InputError(
            f"total_batch_size must be a positive multiple of the number of processes "
            f"({world_size}), got {total_batch_size}."
        )
    listed = _resolve_skipping(dataset) if on_error == "skip" else _resolve(dataset)
    videos = _long_enough(listed, int(getattr(mapper, "min_frames", 1)))
    if not any(frame.get("label_file") for video in videos for frame in video["frames"]):
        raise InputError(f"The data set {_describe(dataset)} has no label files to train on.")
    if seed is None or seed < 0:
        seed = comm.shared_random_seed()
    return TrainLoader(
        videos,
        mapper,
        total_batch_size,
        num_workers=_check_workers(num_workers),
        seed=int(seed),
        prefetch_factor=int(prefetch_factor),
        pin_memory=bool(pin_memory),
        on_error=on_error,
    )


def _describe(dataset: DatasetSpec) -> str:
    """The data set's name or names, for messages."""
    if isinstance(dataset, str):
        return repr(dataset)
    names = [item if isinstance(item, str) else "(video dicts)" for item in dataset]
    return ", ".join(sorted(set(names)))


def build_test_loader(
    *,
    dataset: DatasetSpec,
    mapper: Callable[[dict[str, Any]], Any],
    batch_size: int = 1,
    num_workers: int = 0,
) -> DataLoader:
    """Loader of evaluation: all frames of this rank's videos in order, each exactly once.

    Args:
        dataset: registered name, list of names, or list of video dicts.
        mapper: frame dict -> item.
        batch_size: frames per batch; a batch may hold the end of one video and the start of the
            next.
        num_workers: worker processes per rank.

    Returns:
        A loader of lists of items, with a length (0 on a rank without videos).

    Raises:
        InputError: unknown data set, a video id that occurs twice, or a video without frames.
    """
    if int(batch_size) < 1:
        raise InputError(f"batch_size must be >= 1, got {batch_size}.")
    videos = _resolve(dataset)
    seen: set[str] = set()
    for video in videos:
        if video["video_id"] in seen:
            raise InputError(f"The video id {video['video_id']!r} occurs twice in the data set.")
        seen.add(video["video_id"])
    return EvaluationLoader(
        FrameDataset(videos, mapper),
        batch_size=int(batch_size),
        sampler=VideoInferenceSampler([len(video["frames"]) for video in videos]),
        num_workers=_check_workers(num_workers),
        collate_fn=_identity,
        generator=torch.Generator(),  # making an iterator must not draw from the global one
    )
