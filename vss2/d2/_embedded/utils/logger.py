"""Logging: set-up of a root logger, messages that do not repeat, and a table of few numbers."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate
from termcolor import colored

from .file_io import PathManager

__all__ = [
    "create_small_table",
    "log_every_n",
    "log_every_n_seconds",
    "log_first_n",
    "setup_logger",
]

_DATE_FORMAT = "%m/%d %H:%M:%S"
_PLAIN_FORMAT = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"


class _ColorFormatter(logging.Formatter):
    """Marks warnings and errors, and shortens the root name in what the screen shows."""

    def __init__(self, root_name: str, abbrev_name: str) -> None:
        prefix = colored("[%(asctime)s %(shortname)s]: ", "green")
        super().__init__(prefix + "%(message)s", datefmt=_DATE_FORMAT)
        self._root_name = root_name
        self._abbrev_name = abbrev_name

    def format(self, record: logging.LogRecord) -> str:
        name = record.name
        if name == self._root_name or name.startswith(self._root_name + "."):
            name = (self._abbrev_name + name[len(self._root_name) :]).lstrip(".")
        record.shortname = name
        text = super().format(record)
        if record.levelno == logging.WARNING:
            return colored("WARNING", "red", attrs=["blink"]) + " " + text
        if record.levelno >= logging.ERROR:
            return colored("ERROR", "red", attrs=["blink", "underline"]) + " " + text
        return text


@functools.cache
def _log_stream(filename: str) -> Any:
    """One stream a file, however many loggers write to it."""
    stream = PathManager.open(filename, "a")
    atexit.register(stream.close)
    return stream


@functools.cache
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Set up the logger `name` with level DEBUG. Calls with equal arguments do it once.

    Args:
        output: a folder (the file is `log.txt` in it), a name ending in `.txt` or `.log`, or None
            for no file. Ranks above 0 append `.rank<N>` to the name.
        distributed_rank: only rank 0 writes to stdout.
        color: whether what goes to stdout is coloured.
        abbrev_name: stands for `name` on stdout; None keeps it, but for "detectron2" (d2).
        enable_propagation: whether parent loggers get the messages too.
        configure_stdout: whether to write to stdout at all.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name
    plain = logging.Formatter(_PLAIN_FORMAT, datefmt=_DATE_FORMAT)

    if configure_stdout and distributed_rank == 0:
        screen = logging.StreamHandler(stream=sys.stdout)
        screen.setLevel(logging.DEBUG)
        screen.setFormatter(_ColorFormatter(name, abbrev_name) if color else plain)
        logger.addHandler(screen)
    if output is not None:
        is_file = output.endswith((".txt", ".log"))
        filename = output if is_file else os.path.join(output, "log.txt")
        if distributed_rank > 0:
            filename += f".rank{distributed_rank}"
        PathManager.mkdirs(os.path.dirname(filename) or ".")
        file = logging.StreamHandler(_log_stream(filename))
        file.setLevel(logging.DEBUG)
        file.setFormatter(plain)
        logger.addHandler(file)
    return logger


def _caller() -> tuple[str, tuple[str, int]]:
    """Module name of the first frame outside this file, and what identifies the calling line."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    module = frame.f_globals.get("__name__", "__main__")
    if module == "__main__":
        module = "vss2"  # its own set-up shows the message; a logger "__main__" has none
    return module, (frame.f_code.co_filename, frame.f_lineno)


_message_counts: Counter[Any] = Counter()
_last_logged: dict[Any, float] = {}


def log_first_n(
    lvl: int,
    msg: str,
    n: int = 1,
    *,
    name: str | None = None,
    key: str | tuple[str, ...] = "caller",
) -> None:
    """Log `msg` the first `n` times only.

    Args:
        name: the logger; default the caller's module.
        key: what counts as the same message: `"caller"` (the calling line), `"message"` (its
            text), or both in a tuple.
    """
    module, line = _caller()
    keys = (key,) if isinstance(key, str) else tuple(key)
    assert set(keys) <= {"caller", "message"}, f"unknown key {key!r}"
    identity = tuple(line if part == "caller" else msg for part in keys)
    _message_counts[identity] += 1
    if _message_counts[identity] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the 1st, (n+1)-th, (2n+1)-th ... message from the calling line."""
    module, line = _caller()
    _message_counts[line] += 1
    if n == 1 or _message_counts[line] % n == 1:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Log a message from the calling line unless one was logged less than `n` seconds ago."""
    module, line = _caller()
    last, now = _last_logged.get(line), time.time()
    if last is None or now - last >= n:
        logging.getLogger(name or module).log(lvl, msg)
        _last_logged[line] = now


def create_small_table(small_dict: Mapping[str, Any]) -> str:
    """A table of one row: keys as header, numbers below with three decimals."""
    return tabulate(
        [tuple(small_dict.values())],
        headers=list(small_dict.keys()),
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )
