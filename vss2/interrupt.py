"""Ctrl-C asks a long run to end at a good place; pressed again, it ends the run at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Context in which the first Ctrl-C only asks to stop and the second one stops at once.

    Only the main thread gets signals: elsewhere nothing changes.

    Args:
        message: shown at the first one.

    Attributes:
        requested: whether it came.
    """

    def __init__(self, message: str):
        self.message = message
        self.requested = False
        self._previous: Any = None

    def __call__(self) -> bool:
        return self.requested

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._first()

    def _first(self) -> None:
        # A plain write: a progress bar or the logger may be in the middle of a line.
        os.write(2, f"\n{self.message}\n".encode())
