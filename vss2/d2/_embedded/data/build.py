"""Data loaders for training and evaluation."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ..utils import comm
from ..utils.env import seed_all_rng
from .catalog import DatasetCatalog
from .common import DatasetFromList, MapDataset, ToIterableDataset
from .samplers import InferenceSampler, TrainingSampler


def trivial_batch_collator(batch: list) -> list:
    """The batch as it is: a list of items."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed python, numpy and torch of a loader worker from the seed that torch gave it."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)


def get_detection_dataset_dicts(
    names: str | Sequence[str], filter_empty: bool = True
) -> list[dict]:
    """All items of one or several registered data sets, one after the other.

    Args:
        names: a registered name, or several.
        filter_empty: where items carry `"annotations"`, drop those whose every annotation is
            marked `"iscrowd"` or that have none. Items without that key (videos, semantic labels)
            are kept.

    Raises:
        AssertionError: no name, or a data set without items.
        KeyError: a name is not registered.
    """
    names = [names] if isinstance(names, str) else list(names)
    assert names, "get_detection_dataset_dicts needs at least one data set name"
    parts = [DatasetCatalog.get(name) for name in names]
    for name, part in zip(names, parts, strict=True):
        assert len(part), f"The data set '{name}' has no items"
    dicts = list(itertools.chain.from_iterable(parts))
    if filter_empty and "annotations" in dicts[0]:
        dicts = [d for d in dicts if any(not a.get("iscrowd", 0) for a in d["annotations"])]
    assert dicts, f"No item of {', '.join(names)} has annotations"
    return dicts


def build_batch_data_loader(
    dataset: Dataset,
    sampler: Sampler | None,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> DataLoader:
    """A loader whose batch k is the k-th slice of this rank's index stream for any `num_workers`.

    Args:
        dataset: map-style with a `sampler`, or iterable with `sampler=None`.
        sampler: index stream of this rank.
        total_batch_size: over all ranks; must divide by their number.
        aspect_ratio_grouping: only False is supported.
        collate_fn: default: the batch is the list of its items.
        single_gpu_batch_size: batch of one rank, in place of `total_batch_size` (then 0).
        seed: of the loader's generator, from which the workers' seeds come. The same on every
            rank means the same randomness on every rank.
        kwargs: passed on to `torch.utils.data.DataLoader`.

    Raises:
        ValueError: both batch sizes are given.
        AssertionError: the batch size is not positive or does not divide by the world size.
        NotImplementedError: `aspect_ratio_grouping=True`.
    """
    if aspect_ratio_grouping:
        raise NotImplementedError(
            "aspect_ratio_grouping=True needs a real detectron2; pass aspect_ratio_grouping=False"
        )
    batch_size = _batch_size_per_rank(total_batch_size, single_gpu_batch_size)
    if isinstance(dataset, IterableDataset):
        assert sampler is None, "an iterable data set has its own order: give no sampler"
    else:
        assert sampler is not None, "a map-style data set needs a sampler"
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    generator = None
    if seed is not None:
        generator = torch.Generator()
        generator.manual_seed(seed)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        drop_last=drop_last,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
        worker_init_fn=worker_init_reset_seed,
        prefetch_factor=prefetch_factor if num_workers > 0 else None,
        persistent_workers=persistent_workers,
        pin_memory=pin_memory,
        generator=generator,
        **kwargs,
    )


def _batch_size_per_rank(total_batch_size: int, single_gpu_batch_size: int | None) -> int:
    """Batch size of this rank from exactly one of the two sizes."""
    if single_gpu_batch_size:
        if total_batch_size:
            raise ValueError(
                "Give total_batch_size or single_gpu_batch_size, and leave the other 0; "
                f"got {total_batch_size} and {single_gpu_batch_size}"
            )
        return single_gpu_batch_size
    world_size = comm.get_world_size()
    assert total_batch_size > 0, f"total_batch_size={total_batch_size} must be positive"
    assert total_batch_size % world_size == 0, (
        f"total_batch_size={total_batch_size} must be a multiple of the {world_size} processes"
    )
    return total_batch_size // world_size


def _mapped(dataset: Any, mapper: Callable | None) -> Dataset:
    """A list of dicts or a data set, with the mapper applied to its items."""
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    return dataset if mapper is None else MapDataset(dataset, mapper)


def build_detection_train_loader(
    dataset: list | Dataset,
    *,
    mapper: Callable | None,
    sampler: Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable | None = None,
    **kwargs: Any,
) -> DataLoader:
    """An endless loader of mapped items: `build_batch_data_loader` over a `TrainingSampler`.

    Args:
        dataset: list of dicts, or a data set (an iterable one takes no sampler).
        mapper: item -> sample, or None for the items as they are.
        sampler: default `TrainingSampler(len(dataset))`.
        aspect_ratio_grouping: pass False; True (detectron2's default) is not supported.
    """
    data = _mapped(dataset, mapper)
    if isinstance(data, IterableDataset):
        assert sampler is None, "an iterable data set has its own order: give no sampler"
    else:
        if sampler is None:
            logging.getLogger(__name__).info("Sampling with TrainingSampler(%d)", len(data))  # type: ignore[arg-type]
            sampler = TrainingSampler(len(data))  # type: ignore[arg-type]
        assert isinstance(sampler, Sampler), f"sampler must be a Sampler, not {sampler!r}"
    return build_batch_data_loader(
        data,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def build_detection_test_loader(
    dataset: list | Dataset,
    *,
    mapper: Callable | None,
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable | None = None,
) -> DataLoader:
    """A loader that visits every item once, in order, and drops none.

    Args:
        dataset: list of dicts, or a data set (an iterable one takes no sampler).
        mapper: item -> item for the model; must never return None, which would put another item
            in its place.
        sampler: default `InferenceSampler(len(dataset))`.
        batch_size: per rank.
    """
    data = _mapped(dataset, mapper)
    if isinstance(data, IterableDataset):
        assert sampler is None, "an iterable data set has its own order: give no sampler"
    elif sampler is None:
        sampler = InferenceSampler(len(data))  # type: ignore[arg-type]
    return DataLoader(
        data,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
    )
