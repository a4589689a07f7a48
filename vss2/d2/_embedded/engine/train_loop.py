"""The training loop and the hooks that hang on it."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import nn

from ..utils import comm
from ..utils.events import EventStorage, get_event_storage


class HookBase:
    """Something that is called at fixed points of the loop.

    `trainer` is set (as a weak proxy) when the hook is registered. `after_step` may assume that
    `trainer.iter` is the iteration just done; `after_train` runs after success and failure alike.
    """

    trainer: Any = None

    def before_train(self) -> None:
        """Called once before the first iteration."""

    def after_train(self) -> None:
        """Called once after the last iteration, or after the exception that ended training."""

    def before_step(self) -> None:
        """Called before each iteration."""

    def after_backward(self) -> None:
        """Called after the backward pass of each iteration, before the optimizer's step."""

    def after_step(self) -> None:
        """Called after each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint should keep of this hook; empty for nothing."""
        return {}


class TrainerBase:
    """An iterative loop with hooks; what one iteration does is said by `run_step` of a subclass.

    Attributes:
        iter: the current iteration; after a successful `train`, equal to `max_iter`.
        start_iter, max_iter: the range given to `train`.
        storage: the `EventStorage` that is open during `train`.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: Sequence[HookBase | None]) -> None:
        """Append hooks, called in this order; None entries are left out."""
        added = [hook for hook in hooks if hook is not None]
        for hook in added:
            assert isinstance(hook, HookBase), f"{hook!r} is not a HookBase"
            # The trainer owns its hooks: a strong reference back would be a cycle.
            hook.trainer = weakref.proxy(self)
        self._hooks.extend(added)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations `start_iter <= i < max_iter`."""
        logger = logging.getLogger(__name__)
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                # Hooks tell success from failure by iter == max_iter.
                self.iter += 1
            except Exception:
                logger.exception("Training was ended at iteration %d by:", self.iter)
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """`{"iteration": int, "hooks": {class qualname: state}}`; "hooks" only if any has state."""
        hooks: dict[str, Any] = {}
        for hook in self._hooks:
            state = hook.state_dict()
            if state:
                # Two hooks of one class cannot be told apart by name: the first is kept.
                hooks.setdefault(type(hook).__qualname__, state)
        state_dict: dict[str, Any] = {"iteration": self.iter}
        if hooks:
            state_dict["hooks"] = hooks
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `iter` and the hooks' states; a state without its hook is a warning."""
        self.iter = state_dict["iteration"]
        for name, state in state_dict.get("hooks", {}).items():
            hook: Any = next((h for h in self._hooks if type(h).__qualname__ == name), None)
            if hook is None:
                logging.getLogger(__name__).warning(
                    "No hook %s is registered: its saved state is ignored", name
                )
            else:
                hook.load_state_dict(state)


class SimpleTrainer(TrainerBase):
    """One model, one optimizer, one loader: forward, backward, step.

    The model takes a batch and returns its losses: a dict of scalar tensors, or one tensor.

    Args:
        model: put into training mode.
        data_loader: iterated once, so it must be endless (a finite one ends in `StopIteration`).
        optimizer: over the model's parameters.
        gather_metric_period: iterations between two gatherings of the losses on rank 0.
        zero_grad_before_forward: clear the gradients before the forward pass instead of before
            the backward pass.
        async_write_metrics: write the metrics in a thread; its exceptions surface one write later.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ):
        super().__init__()
        model.train()
        self.model = model
        self.data_loader: Iterable | None = data_loader
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        self._data_loader_iter_obj: Iterator | None = None
        self._executor = ThreadPoolExecutor(max_workers=1) if async_write_metrics else None
        self._pending_write: Future | None = None

    @property
    def _data_loader_iter(self) -> Iterator:
        # Made at the first use, so that workers start only when training does.
        if self._data_loader_iter_obj is None:
            assert self.data_loader is not None
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def run_step(self) -> None:
        """One iteration. `AssertionError` if the model was left in eval mode."""
        assert self.model.training, "The model was left in eval mode; training needs model.train()"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        output = self.model(batch)
        if isinstance(output, torch.Tensor):
            losses, loss_dict = output, {"total_loss": output}
        else:
            losses, loss_dict = sum(output.values()), output
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses.backward()
        self.after_backward()

        if self._executor is None:
            self._write_metrics(loss_dict, data_time)
        else:
            if self._pending_write is not None:
                self._pending_write.result()
            self._pending_write = self._executor.submit(
                self._write_metrics, loss_dict, data_time, iter=self.iter
            )
        self.optimizer.step()

    def after_train(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True)
        super().after_train()
        if self._pending_write is not None and self.iter == self.max_iter:
            self._pending_write.result()  # the last write's exception, if training went well so far

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Replace the loader by a new one; the old one is let go first, to free its workers."""
        self.data_loader = None
        self._data_loader_iter_obj = None
        self.data_loader = data_loader_builder()

    def _write_metrics(
        self,
        loss_dict: Mapping[str, torch.Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        cur_iter = self.iter if iter is None else iter
        if (cur_iter + 1) % self.gather_metric_period == 0:
            SimpleTrainer.write_metrics(loss_dict, data_time, cur_iter, prefix)

    @staticmethod
    def write_metrics(
        loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int, prefix: str = ""
    ) -> None:
        """Put losses (mean over ranks) and data time (maximum over ranks) into the storage.

        Scalars: `rank_data_time` on every rank; on rank 0 `data_time`, `<prefix>total_loss`, and
        each loss by its name where there is more than one.

        Raises:
            FloatingPointError: the total is infinite or NaN (on rank 0 only).
        """
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        losses = {name: loss.detach().cpu().item() for name, loss in loss_dict.items()}
        gathered = comm.gather((data_time, losses))
        if not comm.is_main_process():
            return
        storage.put_scalar("data_time", max(t for t, _ in gathered), cur_iter=cur_iter)
        means = {name: float(np.mean([values[name] for _, values in gathered])) for name in losses}
        total = sum(means.values())
        if not np.isfinite(total):
            raise FloatingPointError(
                f"The loss is infinite or NaN at iteration {cur_iter}: {means}"
            )
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(means) > 1:
            for name, value in means.items():
                storage.put_scalar(name, value, cur_iter=cur_iter)

    def state_dict(self) -> dict[str, Any]:
        """State of `TrainerBase` and `"optimizer"`."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
