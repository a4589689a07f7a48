"""Where a training run puts its numbers, and the writers that carry them out."""

from __future__ import annotations

import datetime
import functools
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fvcore.common.history_buffer import HistoryBuffer

from .file_io import PathManager

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
    "has_event_storage",
]

_open_storages: list[EventStorage] = []


def get_event_storage() -> EventStorage:
    """The storage whose `with` block is the innermost open one; AssertionError if none is."""
    assert _open_storages, "get_event_storage() needs an open `with EventStorage(...)` block."
    return _open_storages[-1]


def has_event_storage() -> bool:
    """Whether the code runs inside a `with EventStorage(...)` block."""
    return bool(_open_storages)


class EventStorage:
    """Scalars with their history, images and histograms of a run, by iteration.

    It does not advance on its own: the owner sets `iter` or calls `step`.
    """

    def __init__(self, start_iter: int = 0) -> None:
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._latest: dict[str, tuple[float, int]] = {}
        self._smoothing_hints: dict[str, bool] = {}
        self._iter = start_iter
        self._prefix = ""
        self._vis_data: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Add an image for the writers that show images.

        Args:
            img_tensor: (3, H, W) RGB, uint8 in 0..255 or float in 0..1.
        """
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_scalar(
        self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Add a number to the history of `name`.

        Args:
            smoothing_hint: whether writers should smooth it. One name has one hint: another one
                later is an AssertionError.
            cur_iter: default the current iteration.
        """
        name = self._prefix + name
        cur_iter = self._iter if cur_iter is None else cur_iter
        value = float(value)
        known_hint = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert known_hint == smoothing_hint, (
            f"Scalar {name} was put with smoothing_hint={known_hint} before, now {smoothing_hint}."
        )
        self._history[name].update(value, cur_iter)
        self._latest[name] = (value, cur_iter)

    def put_scalars(
        self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: Any
    ) -> None:
        """`put_scalar` for each keyword argument."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """Add a histogram of all values of a tensor, in `bins` equal bins."""
        low, high = hist_tensor.min().item(), hist_tensor.max().item()
        edges = torch.linspace(low, high, bins + 1, dtype=torch.float32)
        self._histograms.append(
            {
                "tag": hist_name,
                "min": low,
                "max": high,
                "num": hist_tensor.numel(),
                "sum": float(hist_tensor.sum()),
                "sum_squares": float((hist_tensor**2).sum()),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": torch.histc(hist_tensor.float(), bins=bins).tolist(),
                "global_step": self._iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """The history of a scalar; KeyError if there is none."""
        if name not in self._history:
            raise KeyError(f"No history metric available for {name}!")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """All histories by name."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """The newest value of each scalar and the iteration that it belongs to."""
        return self._latest

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """As `latest`, but the median of the last `window_size` iterations where the hint says."""
        result = {}
        for name, (value, iteration) in self._latest.items():
            if self._smoothing_hints[name]:
                value = self._history[name].median(self.count_samples(name, window_size))
            result[name] = (value, iteration)
        return result

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values of a scalar fall into its last `window_size` iterations."""
        values = self._history[name].values()
        oldest = values[-1][1] - window_size
        count = 0
        for _, iteration in reversed(values):
            if iteration <= oldest:
                break
            count += 1
        return count

    def smoothing_hints(self) -> dict[str, bool]:
        """The hint of each scalar."""
        return self._smoothing_hints

    def step(self) -> None:
        """Go to the next iteration."""
        self._iter += 1

    @property
    def iter(self) -> int:
        """The current iteration."""
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Scalars put inside the block are named `<name>/...`."""
        outer = self._prefix
        self._prefix = name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = outer

    def clear_images(self) -> None:
        """Forget the images, as writers do after writing them."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Forget the histograms, as writers do after writing them."""
        self._histograms = []

    def __enter__(self) -> EventStorage:
        _open_storages.append(self)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        assert _open_storages[-1] is self, "EventStorage blocks must be closed inside out."
        _open_storages.pop()


class EventWriter:
    """Base of what reads an EventStorage and writes it somewhere."""

    def write(self) -> None:
        """Write what the open storage has that was not written yet."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what the writer holds. Nothing by default."""


class JSONWriter(EventWriter):
    """Appends one JSON object with sorted keys for each iteration that has new scalars.

    Lines need not come in order of iteration. A NaN is written as `NaN`.
    """

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        """
        Args:
            json_file: kept and appended to if it exists.
            window_size: of the median for scalars that want smoothing, in iterations.
        """
        self._file = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        storage = get_event_storage()
        lines: dict[int, dict[str, float]] = {}
        newest = storage.latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in newest.items():
            if iteration > self._last_write:
                lines.setdefault(iteration, {"iteration": iteration})[name] = value
        if lines:
            self._last_write = max(lines)
        for line in lines.values():
            self._file.write(json.dumps(line, sort_keys=True) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, images and histograms to a tensorboard event file."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        """
        Args:
            log_dir: folder of the event file, made at the first write.
            window_size: of the median for scalars that want smoothing, in iterations.
            kwargs: further arguments of `torch.utils.tensorboard.SummaryWriter`.
        """
        self._window_size = window_size
        self._writer_args = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @functools.cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # late: tensorboard is optional

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        storage = get_event_storage()
        last_write = self._last_write
        newest = storage.latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in newest.items():
            if iteration > self._last_write:
                self._writer.add_scalar(name, value, iteration)
                last_write = max(last_write, iteration)
        self._last_write = last_write
        for name, image, iteration in storage._vis_data:
            self._writer.add_image(name, image, iteration)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()

    def close(self) -> None:
        if "_writer" in self.__dict__:  # nothing was ever written otherwise
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs one line: time left, iteration, losses, metrics, seconds per iteration, lr, memory.

    Losses are the scalars with `loss` in their name, metrics those with `[metric]`; both are
    medians over `window_size` iterations.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        """
        Args:
            max_iter: end of training; None leaves the time left out.
            window_size: in iterations.
        """
        self.logger = logging.getLogger(__name__)
        self._max_iter = max_iter
        self._window_size = window_size

    def write(self) -> None:
        storage = get_event_storage()
        iteration = storage.iter
        if iteration == self._max_iter:
            return  # only after_train writes here: the last iteration has been printed
        parts = [
            *self._time_left(storage, iteration),
            f"iter: {iteration}",
            *self._medians(storage, "loss"),
            *self._medians(storage, "[metric]"),
            *self._seconds(storage, "time"),
            *self._seconds(storage, "data_time"),
            f"lr: {storage.history('lr').latest():.5g}" if "lr" in storage.latest() else "lr: N/A",
        ]
        if torch.cuda.is_available():
            parts.append(f"max_mem: {torch.cuda.max_memory_allocated() / 1024**2:.0f}M")
        self.logger.info(" " + "  ".join(parts))

    def _time_left(self, storage: EventStorage, iteration: int) -> list[str]:
        if self._max_iter is None or "time" not in storage.latest():
            return []
        per_iter = storage.history("time").median(1000)
        seconds = per_iter * (self._max_iter - iteration - 1)
        storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        return [f"eta: {datetime.timedelta(seconds=int(seconds))}"]

    def _medians(self, storage: EventStorage, marker: str) -> list[str]:
        return [
            f"{name}: {history.median(storage.count_samples(name, self._window_size)):.4g}"
            for name, history in storage.histories().items()
            if marker in name
        ]

    def _seconds(self, storage: EventStorage, name: str) -> list[str]:
        if name not in storage.latest():
            return []
        history = storage.history(name)
        mean = history.avg(storage.count_samples(name, self._window_size))
        return [f"{name}: {mean:.4f}", f"last_{name}: {history.latest():.4f}"]
