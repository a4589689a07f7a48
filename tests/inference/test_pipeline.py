from __future__ import annotations

import itertools
import signal
import threading
import time

import pytest

from vss2.inference.pipeline import Background, Prefetch
from vss2.inference.predictor import fresh_start
from vss2.interrupt import StopRequest
from vss2.modeling.window import PUBLISHED_START_TABLE, BlockWindow, OffsetWindow


def test_prefetch_keeps_order_and_stays_shortly_ahead():
    made, ahead = [], []

    def items():
        for k in range(40):
            made.append(k)
            yield k

    with Prefetch(items(), depth=3) as prefetch:
        taken = []
        for item in prefetch:
            time.sleep(0.001)
            ahead.append(len(made) - len(taken))
            taken.append(item)
    assert taken == list(range(40))
    assert max(ahead) <= 3 + 2


def test_prefetch_raises_the_error_in_its_place():
    def items():
        yield 1
        yield 2
        raise OSError("the cable is out")

    with Prefetch(items(), 4) as prefetch:
        taken = iter(prefetch)
        assert [next(taken), next(taken)] == [1, 2]
        with pytest.raises(OSError, match="the cable is out"):
            next(taken)


def test_prefetch_that_is_left_closes_its_generator():
    closed = threading.Event()

    def items():
        try:
            yield from range(1000)
        finally:
            closed.set()

    with Prefetch(items(), 2) as prefetch:
        assert next(iter(prefetch)) == 0
    assert closed.wait(5)


def test_prefetch_stops_waiting_for_an_item_that_does_not_come():
    release, asked = threading.Event(), threading.Event()

    def items():
        yield 1
        asked.set()
        release.wait(30)

    with Prefetch(items(), 2, stop=asked.is_set) as prefetch:
        assert list(prefetch) == [1]
    release.set()


def test_background_works_in_order_in_one_other_thread():
    done, threads = [], set()

    def work(item):
        threads.add(threading.get_ident())
        done.append(item)

    background = Background(work, 2)
    for k in range(30):
        background.put(k)
    background.close()
    background.check()
    assert done == list(range(30))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_background_raises_and_never_blocks_after_an_error():
    def work(item):
        raise OSError("full")

    background = Background(work, 1)
    background.put(1)
    for k in range(3):
        background._queue.put(k)  # taken and dropped, or this would block
    with pytest.raises(OSError, match="full"):
        background.put(5)
    background.close()
    with pytest.raises(OSError, match="full"):
        background.check()


def test_background_drops_what_waits():
    begun, release, done = threading.Event(), threading.Event(), []

    def work(item):
        begun.set()
        release.wait(30)
        done.append(item)

    background = Background(work, 3)
    for k in range(3):
        background.put(k)
    assert begun.wait(5)
    threading.Timer(0.05, release.set).start()
    background.close(drop=True)
    assert done == [0]


def test_waiting_is_counted(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("vss2.inference.pipeline.time.perf_counter", lambda: next(ticks))
    with Prefetch(iter("abc"), 1) as prefetch:
        assert list(prefetch) == ["a", "b", "c"]
    assert prefetch.waited == 4  # and once for the end
    background = Background(lambda item: None, 1)
    for item in "abc":
        background.put(item)
    background.close()
    assert background.waited == 3


def test_a_second_ctrl_c_does_not_wait():
    with StopRequest("ending") as stop:
        stop._handle(signal.SIGINT, None)
        with pytest.raises(KeyboardInterrupt):
            stop._handle(signal.SIGINT, None)


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (OffsetWindow(), {0: 0, 1: 1, 500: 500}),
        (OffsetWindow((-9, -6, -3, 0), PUBLISHED_START_TABLE), {0: 0, 5: 0, 9: 0, 30: 21}),
        (OffsetWindow((-4, -2, 0)), {3: 0, 4: 0, 100: 96}),
        (BlockWindow(1), {7: 7}),
        (BlockWindow(2), {5: 0, 6: 6, 7: 6, 11: 6, 12: 12}),
        (BlockWindow(5), {14: 0, 15: 15, 44: 30}),
    ],
)
def test_the_latest_fresh_start_that_changes_no_clip(window, expected):
    assert {position: fresh_start(window, position) for position in expected} == expected
