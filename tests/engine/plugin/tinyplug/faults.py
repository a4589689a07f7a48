"""How a training run of the plug-in hurts itself, as environment variables ask for.

TINY_KILL_AT=<iteration>, TINY_SIGINT_AT=<iteration>   the signal, inside a forward pass
TINY_KILL_IN=<seconds>     SIGKILL that long after the first forward pass of the process
TINY_FAULT=<point>:<file>:<action>   while that file (a pattern) is saved, at the point "open",
                           "write", "sync", "rename" or "renamed"; for actions see `_happen`
TINY_FAULT_SKIPS=<number>  how many times that point is passed before
TINY_STEP=<seconds>        what a training step lasts at least
TINY_TRACE=<file>          gets a line for whatever begins: steps, evaluations, parts of saves
"""

from __future__ import annotations

import errno
import io
import os
import signal
import threading
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from vss2 import checkpoint_io
from vss2.d2.utils import get_event_storage, has_event_storage

_timers: list[threading.Timer] = []
_passed: list[str] = []


def trace(text: str) -> None:
    if "TINY_TRACE" in os.environ:
        with open(os.environ["TINY_TRACE"], "a") as f:
            f.write(text + "\n")


def step(iteration: int) -> None:
    """At the begin of a training step."""
    trace(f"{iteration} training")
    if "TINY_KILL_IN" in os.environ and not _timers:
        _timers.append(threading.Timer(float(os.environ["TINY_KILL_IN"]), _die))
        _timers[0].start()
    if os.environ.get("TINY_KILL_AT") == str(iteration):
        _die()
    if os.environ.get("TINY_SIGINT_AT") == str(iteration):
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(float(os.environ.get("TINY_STEP", 0)))


def evaluation() -> None:
    """At each batch of an evaluation; its point is "evaluate", its file the iteration."""
    if has_event_storage():
        _at("evaluate", str(get_event_storage().iter))()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _happen(action: str) -> None:
    """The process dies ("kill"), or the disk answers with that error ("ENOSPC", "EROFS")."""
    if action == "kill":
        _die()
    number = getattr(errno, action)
    raise OSError(number, os.strerror(number))


def _at(point: str, file: str | os.PathLike[str]) -> Callable[[], None]:
    """Traces that `point` of saving `file` is reached; returns what is to happen there."""
    name = Path(file).name.removesuffix(".tmp")
    trace(f"{point} {name}")
    where, pattern, action = os.environ.get("TINY_FAULT", "::").split(":")
    if where == point and fnmatch(name, pattern):
        _passed.append(name)
        if len(_passed) <= int(os.environ.get("TINY_FAULT_SKIPS", 0)):
            return lambda: None
        return lambda: _happen(action)
    return lambda: None


def install() -> None:
    """Put the points into what saves a checkpoint."""
    save, sync, replace = torch.save, checkpoint_io.sync, os.replace
    path_open, write_text = Path.open, Path.write_text

    def saving(content: Any, file: Any) -> None:
        whole = io.BytesIO()
        save(content, whole)
        middle = len(whole.getvalue()) // 2
        file.write(whole.getvalue()[:middle])
        file.flush()
        _at("write", file.name)()
        file.write(whole.getvalue()[middle:])

    def opening(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if path.name.endswith(".tmp") and "w" in mode:
            _at("open", path)()
        return path_open(path, mode, *args, **kwargs)

    def writing(path: Path, text: str, *args: Any, **kwargs: Any) -> int:
        fault = _at("write", path) if path.name.endswith(".tmp") else None
        if fault is not None:
            with path_open(path, "w") as f:
                f.write(text[: len(text) // 2])
            fault()
        return write_text(path, text, *args, **kwargs)

    def syncing(path: Path) -> None:
        if path.name.endswith(".tmp"):
            _at("sync", path)()
        sync(path)

    def renaming(source: Any, target: Any) -> None:
        _at("rename", target)()
        replace(source, target)
        _at("renamed", target)()

    torch.save, checkpoint_io.sync, os.replace = saving, syncing, renaming
    Path.open, Path.write_text = opening, writing  # type: ignore[method-assign]
