"""What every test of the door gets."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def untouched_loggers():
    """The backends' loggers as they are before any set-up, so that caplog sees their records."""
    loggers = [logging.getLogger(name) for name in ("vss2", "detectron2", "fvcore")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.NOTSET)
        logger.propagate, logger.handlers = True, []
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers
