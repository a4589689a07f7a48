"""What every test starts from, in tests/ and in projects/*/tests."""

from __future__ import annotations

import logging

import pytest

# The loggers that a run of the tools sets up.
LOGGERS = ("vss2", "fvcore", "detectron2")


@pytest.fixture(autouse=True)
def no_dead_log_handlers() -> None:
    """A run inside a test logs to that test's captured stdout. Once it is closed, whatever logs
    next in the same process would print an error of its own into another test's output."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            if getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)
