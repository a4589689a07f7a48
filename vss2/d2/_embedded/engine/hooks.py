"""Hooks of the training loop.

Their order matters: timer, learning rate, checkpointer, evaluation, best checkpointer, writer.
The learning rate comes before the checkpointer, so that the stored step is not one behind; the
writer comes last, so that it sees what the others have put into the storage.
"""

from __future__ import annotations

import datetime
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer

from ..evaluation.testing import flatten_results_dict
from ..solver import LRMultiplier
from ..utils import comm
from ..utils.events import EventWriter
from .train_loop import HookBase

__all__ = [
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
]


def _hours(seconds: float) -> str:
    """Seconds as H:MM:SS."""
    return str(datetime.timedelta(seconds=int(seconds)))


class CallbackHook(HookBase):
    """A hook made of functions, each called with the trainer. They are let go after training."""

    def __init__(
        self,
        *,
        before_train: Callable | None = None,
        after_train: Callable | None = None,
        before_step: Callable | None = None,
        after_step: Callable | None = None,
    ):
        self._callbacks = {
            "before_train": before_train,
            "after_train": after_train,
            "before_step": before_step,
            "after_step": after_step,
        }

    def _call(self, moment: str) -> None:
        callback = self._callbacks.get(moment)
        if callback is not None:
            callback(self.trainer)

    def before_train(self) -> None:
        self._call("before_train")

    def after_train(self) -> None:
        self._call("after_train")
        # Closures often hold the model: do not keep it alive with the hook.
        self._callbacks.clear()

    def before_step(self) -> None:
        self._call("before_step")

    def after_step(self) -> None:
        self._call("after_step")


class IterationTimer(HookBase):
    """Puts the seconds of each iteration as scalar `time` and logs the speed at the end.

    What the other hooks do between `after_step` and the next `before_step` is not counted in the
    speed, only in the total.

    Args:
        warmup_iter: the first of the iterations (counted from 1) that is timed.
    """

    def __init__(self, warmup_iter: int = 3):
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._start_time = time.perf_counter()
        self._total_timer = Timer()

    def before_train(self) -> None:
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()
        self._timed_steps = 0

    def before_step(self) -> None:
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self) -> None:
        steps_done = self.trainer.storage.iter - self.trainer.start_iter + 1
        if steps_done >= self._warmup_iter:
            self._timed_steps += 1
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._start_time = time.perf_counter()
            self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self) -> None:
        logger = logging.getLogger(__name__)
        total = time.perf_counter() - self._start_time
        in_steps = self._total_timer.seconds()
        if self._timed_steps > 0 and in_steps > 0:
            logger.info(
                "Overall training speed: %d iterations in %s (%.4f s / it)",
                self._timed_steps,
                _hours(in_steps),
                in_steps / self._timed_steps,
            )
        logger.info(
            "Total training time: %s (%s on hooks)", _hours(total), _hours(total - in_steps)
        )


class PeriodicWriter(HookBase):
    """Lets event writers write every `period` iterations and at the last one.

    After training they write once more (final evaluation) and are closed.
    """

    def __init__(self, writers: Sequence[EventWriter], period: int = 20):
        for writer in writers:
            assert isinstance(writer, EventWriter), f"{writer!r} is not an EventWriter"
        self._writers = list(writers)
        self._period = period

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        if next_iter % self._period == 0 or next_iter == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            writer.write()
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's `PeriodicCheckpointer` as a hook.

    Saves `model_{iteration:07d}` when `(iteration + 1) % period == 0` and `model_final` at the
    last iteration. `max_iter` is taken from the trainer.
    """

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves `<file_prefix>.pth` whenever a metric of the evaluation beats its best value so far.

    Register it after the `EvalHook`, with the same period. It keeps no state over a resume.

    Args:
        eval_period: iterations between two looks at the metric; 0 for only after training.
        checkpointer: what saves.
        val_metric: name of the scalar, such as "sem_seg/mIoU".
        mode: "max" or "min".
        file_prefix: name of the checkpoint.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ):
        assert mode in ("max", "min"), f"mode must be 'max' or 'min', got '{mode}'"
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._sign = 1.0 if mode == "max" else -1.0
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _check(self) -> None:
        logger = logging.getLogger(__name__)
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            logger.warning(
                "No evaluation has given the metric %s yet, so no best checkpoint is saved",
                self._val_metric,
            )
            return
        value, at_iter = latest
        if not math.isfinite(value):
            return
        best = self.best_metric
        if best is not None and self._sign * value <= self._sign * best:
            logger.info(
                "%s is %.5f, not better than %.5f at iteration %d: not saved",
                self._val_metric,
                value,
                best,
                self.best_iter,
            )
            return
        self._checkpointer.save(self._file_prefix, iteration=at_iter)
        logger.info(
            "Saved the best model so far: %s is %.5f at iteration %d",
            self._val_metric,
            value,
            at_iter,
        )
        self.best_metric, self.best_iter = value, at_iter

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        due = self._period > 0 and next_iter % self._period == 0
        if due and next_iter != self.trainer.max_iter:
            self._check()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._check()


class LRScheduler(HookBase):
    """Steps a learning-rate schedule each iteration and puts the scalar `lr`.

    The recorded rate is that of the parameter group with most parameters; where every group holds
    one parameter, the rate that most groups share.

    Args:
        optimizer: default the trainer's.
        scheduler: a torch scheduler, or an fvcore `ParamScheduler` that multiplies the rate and is
            a function of iteration / max_iter alone (so no state of it is needed on resume).
            Default the trainer's.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
    ):
        self._optimizer = optimizer
        self._scheduler = scheduler

    @property
    def scheduler(self) -> Any:
        return self._scheduler or self.trainer.scheduler

    def before_train(self) -> None:
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer,
                self.scheduler,
                self.trainer.max_iter,
                last_iter=self.trainer.iter - 1,
            )
        self._best_param_group_id = self.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """Index of the parameter group whose rate is recorded."""
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in optimizer.param_groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self) -> None:
        assert self._optimizer is not None
        rate = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            return self.scheduler.state_dict()
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A ParamScheduler is still one here: it follows from the iteration, not from this state.
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            logging.getLogger(__name__).info("Restoring the scheduler from its saved state")
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Runs an evaluation every `eval_period` iterations and after training.

    Args:
        eval_period: 0 for only after training.
        eval_function: returns None, or a nested dict of numbers, which are put into the storage as
            "a/b" without smoothing. Another type is an `AssertionError`, a leaf that is no number
            a `ValueError`.
        eval_after_train: also evaluate after the last iteration.
    """

    def __init__(self, eval_period: int, eval_function: Callable, eval_after_train: bool = True):
        self._period = eval_period
        self._func = eval_function
        self._eval_after_train = eval_after_train

    def _evaluate(self) -> None:
        results = self._func()
        if results:
            assert isinstance(results, dict), (
                f"The evaluation must return a dict of results, not {results!r}"
            )
            self.trainer.storage.put_scalars(smoothing_hint=False, **_flat_floats(results))
        # Ranks finish their evaluation at different times, which would look like slow data.
        comm.synchronize()

    def after_step(self) -> None:
        next_iter = self.trainer.iter + 1
        due = self._period > 0 and next_iter % self._period == 0
        # The last iteration's evaluation is that of after_train.
        if due and next_iter != self.trainer.max_iter:
            self._evaluate()

    def after_train(self) -> None:
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._evaluate()
        # The function often closes over the model and its trainer.
        del self._func


def _flat_floats(results: Mapping[str, Any]) -> dict[str, float]:
    """Nested results as {"a/b": float}."""
    flat = {}
    for name, value in flatten_results_dict(results).items():
        try:
            flat[name] = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The evaluation must return numbers, but '{name}' is {value!r}"
            ) from error
    return flat
