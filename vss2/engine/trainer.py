"""One iteration of training: mixed precision, accumulation, clipping and a guard against NaN.

The loop, its hooks and its storage are those of the door's trainer.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vss2.d2.engine import SimpleTrainer
from vss2.d2.utils import comm

from .nonfinite import NonFiniteGuard, clip_names

logger = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class VideoTrainer(SimpleTrainer):
    """A SimpleTrainer whose iteration is one optimizer step over one or several batches.

    Per iteration: for each of `grad_accum` batches forward under autocast, backward of loss /
    grad_accum (gradients are exchanged at the last one only); then unscale, clip, check that all
    ranks are finite, step, update of the scale.

    Args:
        model: on its device, wrapped for distributed training or not.
        data_loader: endless.
        optimizer: over the model's parameters.
        device: of the model.
        amp: "bf16" or "fp16" for mixed precision, None for none. The gradient scaler is used with
            fp16 only.
        grad_accum: batches per iteration.
        clip_grad: (largest norm, kind of norm), or None.
        guard: what to do about losses that are not finite; default: raise.
        gather_metric_period: iterations between two writings of the losses' mean over ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device | str = "cpu",
        amp: str | None = None,
        grad_accum: int = 1,
        clip_grad: tuple[float, float] | None = None,
        guard: NonFiniteGuard | None = None,
        gather_metric_period: int = 1,
    ):
        super().__init__(model, data_loader, optimizer, gather_metric_period=gather_metric_period)
        self.device = torch.device(device)
        self.precision = None if amp is None else DTYPES[amp]
        self.grad_accum = grad_accum
        self.clip_grad = clip_grad
        self.guard = guard or NonFiniteGuard()
        self.scaler: torch.amp.GradScaler | None = None
        if amp == "fp16":
            self.scaler = torch.amp.GradScaler(self.device.type)

    def run_step(self) -> None:
        """One iteration.

        Raises:
            NonFiniteLossError: see `NonFiniteGuard`.
        """
        assert self.model.training, "the model was left in eval mode"
        self.guard.remember(self.model)
        self.optimizer.zero_grad()
        data_time, losses, clips = 0.0, [], []
        total = torch.zeros((), device=self.device)
        for micro in range(self.grad_accum):
            start = time.perf_counter()
            batch = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            clips += clip_names(batch)
            with self._exchange(last=micro == self.grad_accum - 1):
                loss, parts = self._forward(batch)
                self._scaled(loss / self.grad_accum).backward()
            total += loss.detach()
            losses.append(parts)
        self.after_backward()
        norm = self._clip()
        # With a scaler a gradient may overflow now and then: it skips such steps by itself.
        watched = norm if self.scaler is None else None
        if self.guard.good(total, watched, self.iter, losses, clips):
            self._write(losses, data_time, norm)
            self._optimizer_step()
        else:
            self._skip()

    def _forward(self, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum of the losses in float32, and the losses by name without their graph."""
        with torch.autocast(
            self.device.type, dtype=self.precision, enabled=self.precision is not None
        ):
            output = self.model(batch)
        parts = {"total_loss": output} if isinstance(output, torch.Tensor) else dict(output)
        if not parts:
            raise ValueError("the model returned no losses")
        loss = torch.stack([part.float() for part in parts.values()]).sum()
        return loss, {name: part.detach() for name, part in parts.items()}

    def _exchange(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Ranks exchange gradients at the last backward pass of an iteration only."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _scaled(self, loss: torch.Tensor) -> torch.Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def _clip(self) -> torch.Tensor | None:
        """Norm of the unscaled gradient before it is clipped; None without clipping."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.clip_grad is None:
            return None
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        largest, kind = self.clip_grad
        return nn.utils.clip_grad_norm_(parameters, largest, norm_type=kind).detach()

    def _optimizer_step(self) -> None:
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _skip(self) -> None:
        self.optimizer.zero_grad()
        if self.scaler is not None:
            self.scaler.update()
        self.storage.put_scalar("skipped_iterations", self.guard.total, smoothing_hint=False)

    def _write(
        self,
        losses: list[dict[str, torch.Tensor]],
        data_time: float,
        norm: torch.Tensor | None,
    ) -> None:
        """Metrics of this iteration to rank 0: losses as means, waiting for data as maximum."""
        due = (self.iter + 1) % self.gather_metric_period == 0
        if not due and self.iter + 1 != self.max_iter:
            return
        pairs = [(name, value.float()) for part in losses for name, value in part.items()]
        values = torch.stack([value for _, value in pairs]).tolist()
        names = dict.fromkeys(name for name, _ in pairs)
        own = {
            name: float(np.mean([v for (n, _), v in zip(pairs, values, strict=True) if n == name]))
            for name in names
        }
        gathered = comm.gather((data_time, own))
        if not comm.is_main_process():
            return
        storage = self.storage
        storage.put_scalar("data_time", max(waited for waited, _ in gathered))
        mean = {n: float(np.mean([found[n] for _, found in gathered if n in found])) for n in own}
        storage.put_scalar("total_loss", sum(mean.values()))
        if len(mean) > 1:
            storage.put_scalars(**mean)
        if norm is not None and math.isfinite(norm):  # scaled gradients may overflow
            storage.put_scalar("grad_norm", float(norm))
        if self.scaler is not None:
            storage.put_scalar("loss_scale", self.scaler.get_scale(), smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        """State of SimpleTrainer, of the guard, and of the scaler where there is one."""
        state = super().state_dict()
        state["nonfinite"] = self.guard.state_dict()
        if self.scaler is not None:
            state["grad_scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "nonfinite" in state_dict:
            self.guard.load_state_dict(state_dict["nonfinite"])
        scale: Mapping[str, Any] | None = state_dict.get("grad_scaler")
        if self.scaler is not None and not scale:
            logger.warning(
                "the checkpoint holds no scale of the gradients: the fp16 scale starts afresh"
            )
        elif self.scaler is not None:
            self.scaler.load_state_dict(dict(scale or {}))
