"""Dataset wrappers: a list in shared memory, a mapping function, and a sampler that runs inside
the workers."""

from __future__ import annotations

import copy as copy_module
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from ..utils.serialize import PicklableWrapper


class _PickledList:
    """Read-only list whose items live pickled, back to back, in one uint8 tensor.

    Workers forked from this process share the tensor; plain Python objects would be copied page by
    page as their reference counts change.
    """

    def __init__(self, items: Iterable[Any]):
        chunks = [pickle.dumps(item, protocol=-1) for item in items]
        self._ends = torch.from_numpy(np.cumsum([len(c) for c in chunks], dtype=np.int64))
        # A bytearray, because torch warns about read-only buffers.
        data = np.frombuffer(bytearray(b"".join(chunks)), dtype=np.uint8)
        self._data = torch.from_numpy(data)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"index {index} is out of range for a list of {size} items")
        index = int(index) % size
        begin = int(self._ends[index - 1]) if index else 0
        return pickle.loads(self._data[begin : int(self._ends[index])].numpy().data)


class DatasetFromList(Dataset):
    """A list as a map-style data set.

    Args:
        lst: the items.
        copy: deep-copy an item at every access (a serialised item is fresh anyway).
        serialize: True keeps the items pickled in one shared tensor; a callable is given the list
            and returns another store with `len` and `[index]`; False keeps the list itself.
    """

    def __init__(self, lst: list, copy: bool = True, serialize: bool | Callable = True):
        self._copy = copy
        self._serialize = serialize
        if callable(serialize):
            self._lst = serialize(lst)
        else:
            self._lst = _PickledList(lst) if serialize else lst

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        item = self._lst[idx]
        return copy_module.deepcopy(item) if self._copy and not self._serialize else item


class MapDataset(Dataset):
    """A data set whose items go through a function that may refuse an item by returning None.

    Map-style: a refused index is replaced by a random other one that has not been refused; where
    none is left, `ValueError`. Iterable: refused items are skipped. The function travels to
    spawned workers by cloudpickle, so lambdas serve.

    Args:
        dataset: map-style or iterable.
        map_func: item -> mapped item, or None.
    """

    def __new__(cls, dataset, map_func):
        if isinstance(dataset, IterableDataset):
            return _IterableMapDataset(dataset, map_func)
        return super().__new__(cls)

    def __getnewargs__(self):
        return self._dataset, self._map_func

    def __init__(self, dataset: Dataset, map_func: Callable[[Any], Any]):
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)
        self._random = random.Random(42)
        self._refused: set[int] = set()

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, idx: int) -> Any:
        index = int(idx)
        retries = 0
        while True:
            item = self._map_func(self._dataset[index])
            if item is not None:
                self._refused.discard(index)
                return item
            self._refused.add(index)
            retries += 1
            if retries >= 3:
                logging.getLogger(__name__).warning(
                    "The mapper gave None for %d items in a row, the last one %d", retries, index
                )
            pool = [i for i in range(len(self)) if i not in self._refused]
            (index,) = self._random.sample(pool, k=1)


class _IterableMapDataset(IterableDataset):
    """What `MapDataset` is for an iterable data set."""

    def __init__(self, dataset: IterableDataset, map_func: Callable[[Any], Any]):
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        mapped = map(self._map_func, self._dataset)
        return (item for item in mapped if item is not None)


class ToIterableDataset(IterableDataset):
    """A map-style data set read in the order of a sampler that runs inside every worker.

    Args:
        dataset: map-style.
        sampler: yields indices.
        shard_sampler: each of N workers keeps every N-th chunk of the sampler's stream, so that
            together they yield it once; otherwise each yields all of it.
        shard_chunk_size: indices per chunk. With the loader's batch size, batch k is the k-th
            slice of the stream whatever the number of workers.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        shard_sampler: bool = True,
        shard_chunk_size: int = 1,
    ):
        assert not isinstance(dataset, IterableDataset), "ToIterableDataset: already iterable"
        assert isinstance(sampler, Sampler), f"ToIterableDataset: {sampler!r} is not a Sampler"
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return (self.dataset[index] for index in self._indices())

    def _indices(self) -> Iterator[int]:
        worker = get_worker_info()
        if worker is None or worker.num_workers == 1 or not self.shard_sampler:
            yield from self.sampler
            return
        stream = iter(self.sampler)
        for chunk_number in itertools.count():
            chunk = list(itertools.islice(stream, self.shard_chunk_size))
            if not chunk:
                return
            if chunk_number % worker.num_workers == worker.id:
                yield from chunk
