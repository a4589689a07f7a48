"""What the tests of loop, data and evaluation share, on either backend."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def captured_logs(level: int = logging.INFO) -> Iterator[list[logging.LogRecord]]:
    """Records of the backends' loggers, whatever set-up they have had."""
    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    collector = Collector(level)
    before = {}
    for name in ("vss2", "detectron2", "fvcore"):
        logger = logging.getLogger(name)
        before[name] = logger.level
        logger.setLevel(min(level, logger.level or level))
        logger.addHandler(collector)
    try:
        yield records
    finally:
        for name, old_level in before.items():
            logging.getLogger(name).removeHandler(collector)
            logging.getLogger(name).setLevel(old_level)


def messages(records: list[logging.LogRecord]) -> list[str]:
    """The texts of log records."""
    return [record.getMessage() for record in records]


@contextmanager
def untouched_loggers() -> Iterator[None]:
    """Takes back what `setup_logger` does to the loggers in the block."""
    names = ("vss2", "detectron2", "fvcore")
    before = {
        name: (logger.level, logger.propagate, list(logger.handlers))
        for name in names
        for logger in [logging.getLogger(name)]
    }
    try:
        yield
    finally:
        for name, (level, propagate, handlers) in before.items():
            logger = logging.getLogger(name)
            logger.level, logger.propagate, logger.handlers = level, propagate, handlers
            logger.manager._clear_cache()  # levels are cached per logger


def pretend_world(monkeypatch, comm, rank: int, size: int) -> None:
    """Let the backend with this `comm` module take itself for rank `rank` of `size`."""
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: size)


class LineModel(nn.Module):
    """y = ax + b with one loss, two losses, or a bare tensor, by `output`."""

    def __init__(self, output: str = "two"):
        super().__init__()
        self.line = nn.Linear(1, 1)
        nn.init.constant_(self.line.weight, 0.5)
        nn.init.constant_(self.line.bias, 0.0)
        self.output = output

    def forward(self, batch):
        x, y = batch
        loss = (self.line(x) - y).square().mean()
        if self.output == "tensor":
            return loss
        if self.output == "one":
            return {"loss_fit": loss}
        return {"loss_fit": loss, "loss_size": 0.01 * self.line.weight.square().sum()}


def line_batches(start: int = 0, end: int | None = None) -> Iterator[tuple]:
    """Batches `start`, `start + 1`, ... of points on y = 2x + 1; batch k is a function of k."""
    k = start
    while end is None or k < end:
        x = torch.rand(4, 1, generator=torch.Generator().manual_seed(k))
        yield x, 2 * x + 1
        k += 1


def line_sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    """SGD with momentum, so that the optimizer has a state."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
