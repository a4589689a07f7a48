"""The evaluator interface and the loop that feeds it."""

from __future__ import annotations

import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..utils import comm
from ..utils.logger import log_every_n_seconds

_WARMUP_BATCHES = 5


class DatasetEvaluator:
    """Takes the inputs and outputs of a model, batch by batch, and sums them up into metrics."""

    def reset(self) -> None:
        """Forget everything; called before a new round."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Take in one batch: the list of inputs and the model's outputs for it."""

    def evaluate(self) -> Mapping[str, Any] | None:
        """Results as {task: {metric: value}}; None where there is nothing to say (other ranks)."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one. Two results with the same task are an `AssertionError`."""

    def __init__(self, evaluators: Iterable[DatasetEvaluator]):
        super().__init__()
        self._evaluators = list(evaluators)

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> OrderedDict[str, Any]:
        """Results of all, merged on rank 0; empty on the others."""
        merged: OrderedDict[str, Any] = OrderedDict()
        for evaluator in self._evaluators:
            result = evaluator.evaluate()
            if result is None or not comm.is_main_process():
                continue
            for task, value in result.items():
                assert task not in merged, f"Two evaluators give results for the task '{task}'"
                merged[task] = value
        return merged


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Puts `model` into eval mode and back into the mode that it was in, also after an error."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class _Stopwatch:
    """Seconds spent on data, model and evaluator, and the two ways in which they are reported."""

    def __init__(self, total: int, logger: logging.Logger):
        self._total = total
        self._warmup = min(_WARMUP_BATCHES, total - 1)
        self._logger = logger
        self.reset()

    def reset(self) -> None:
        self._start = time.perf_counter()
        self.data = self.compute = self.evaluate = 0.0

    def begin_batch(self, index: int, data_seconds: float) -> None:
        self.data += data_seconds
        if index == self._warmup:
            # The first batches pay for start-up costs: count from here.
            self.reset()

    def report_progress(self, index: int) -> None:
        """Log rate and time left after batch `index`, at most every five seconds."""
        done = index + 1 - self._warmup * int(index >= self._warmup)
        per_iter = (time.perf_counter() - self._start) / done
        if index < self._warmup * 2 and self.compute / done <= 5:
            return
        eta = datetime.timedelta(seconds=int(per_iter * (self._total - index - 1)))
        log_every_n_seconds(
            logging.INFO,
            f"Inference done {index + 1}/{self._total}. "
            f"Dataloading: {self.data / done:.4f} s/iter. "
            f"Inference: {self.compute / done:.4f} s/iter. "
            f"Eval: {self.evaluate / done:.4f} s/iter. "
            f"Total: {per_iter:.4f} s/iter. ETA={eta}",
            n=5,
            name=self._logger.name,
        )

    def report_total(self, num_devices: int) -> None:
        """Log total and pure compute time and their shares per batch, without the warm-up."""
        batches = max(self._total - max(self._warmup, 0), 1)
        wall = datetime.timedelta(seconds=time.perf_counter() - self._start)
        compute = datetime.timedelta(seconds=int(self.compute))
        line = "Total inference %s: %s (%.6f s / iter per device, on %d devices)"
        per_batch = wall.total_seconds() / batches
        self._logger.info(line, "time", wall, per_batch, num_devices)
        self._logger.info(line, "pure compute time", compute, self.compute / batches, num_devices)


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Iterable,
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], None]] | None = None,
) -> Mapping[str, Any]:
    """Run the model over the loader and let the evaluator judge its outputs.

    Args:
        model: called with each batch under `torch.no_grad`; a module is in eval mode meanwhile.
        data_loader: has a `len` (it may be 0) and yields batches of inputs.
        evaluator: one, several, or None to only measure speed.
        callbacks: functions for "on_start", "before_inference", "after_inference", "on_end".

    Returns:
        What `evaluator.evaluate()` gives, `{}` in place of None.
    """
    num_devices = comm.get_world_size()
    logger = logging.getLogger(__name__)
    total = len(data_loader)  # type: ignore[arg-type]
    logger.info("Start inference on %d batches", total)
    if evaluator is None:
        evaluator = DatasetEvaluators([])
    elif isinstance(evaluator, list):
        evaluator = DatasetEvaluators(evaluator)
    evaluator.reset()

    calls = dict(callbacks or {})
    watch = _Stopwatch(total, logger)
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        calls.get("on_start", _nothing)()
        mark = time.perf_counter()
        for index, inputs in enumerate(data_loader):
            watch.begin_batch(index, time.perf_counter() - mark)
            mark = time.perf_counter()
            calls.get("before_inference", _nothing)()
            outputs = model(inputs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            calls.get("after_inference", _nothing)()
            computed = time.perf_counter()
            watch.compute += computed - mark
            evaluator.process(inputs, outputs)
            watch.evaluate += time.perf_counter() - computed
            watch.report_progress(index)
            mark = time.perf_counter()
        calls.get("on_end", _nothing)()
    watch.report_total(num_devices)
    return evaluator.evaluate() or {}


def _nothing() -> None:
    """Stands in for a callback that was not given."""
