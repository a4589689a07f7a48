"""Threads around the network: frames are read ahead and results written behind it.

Queues are short, so memory stays constant; order is kept, so results are those of a plain loop.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_TICK = 0.1  # seconds between looks at whether to stop, while a queue stands still
_END = object()


class Prefetch(Generic[T]):
    """Iterates `items` in a thread, at most `depth` items ahead; use it as a context manager.

    An exception of the iterator comes out in its place, after the items before it.

    Args:
        items: what to iterate; a generator is closed in the thread.
        depth: how many items wait at most.
        stop: when it says True, the iteration ends at the next item that is not there yet.

    Attributes:
        waited: seconds that the consumer waited for items.
    """

    def __init__(self, items: Iterable[T], depth: int, stop: Callable[[], bool] = lambda: False):
        self.waited = 0.0
        self._items = iter(items)
        self._stop = stop
        self._queue: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        # A daemon: a read from a camera or a pipe may never return.
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def __enter__(self) -> Prefetch[T]:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed.set()
        self._thread.join(2 * _TICK)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                if not self._offer(item, None):
                    break
        except BaseException as e:  # every exception belongs to the consumer
            error = e
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
        self._offer(_END, error)

    def _offer(self, item: Any, error: BaseException | None) -> bool:
        """Put the item into the queue; False once nobody takes items any more."""
        while not self._closed.is_set():
            try:
                self._queue.put((item, error), timeout=_TICK)
                return True
            except queue.Full:
                pass
        return False

    def __iter__(self) -> Iterator[T]:
        while True:
            began = time.perf_counter()
            got = self._get()
            self.waited += time.perf_counter() - began
            if got is None:
                return
            item, error = got
            if error is not None:
                raise error
            if item is _END:
                return
            yield item

    def _get(self) -> tuple[Any, BaseException | None] | None:
        while True:
            try:
                return self._queue.get(timeout=_TICK)
            except queue.Empty:
                if self._stop():
                    return None


class Background(Generic[T]):
    """Calls `work(item)` in a thread for one item after the other, in order.

    Args:
        work: what to do.
        depth: how many items wait at most; `put` blocks when they do.

    Attributes:
        waited: seconds that `put` blocked.
    """

    def __init__(self, work: Callable[[T], None], depth: int):
        self.waited = 0.0
        self._work = work
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._dropping = False
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        # After an error items are still taken, so that `put` never blocks for good.
        while (item := self._queue.get()) is not _END:
            if self._error is None and not self._dropping:
                try:
                    self._work(item)
                except BaseException as e:  # every exception belongs to the caller
                    self._error = e

    def put(self, item: T) -> None:
        """Hand over an item; raises what `work` raised for an earlier one."""
        self.check()
        began = time.perf_counter()
        self._queue.put(item)
        self.waited += time.perf_counter() - began

    def check(self) -> None:
        """Raise what `work` raised, if it did."""
        if self._error is not None:
            raise self._error

    def close(self, drop: bool = False) -> None:
        """End the thread, after the items that wait, or without them where `drop`."""
        self._dropping = drop
        if self._thread.is_alive():
            self._queue.put(_END)
            self._thread.join()
