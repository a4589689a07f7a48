"""What a resumed run has to know about the run that wrote its checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vss2.checkpoint_io import atomic_write
from vss2.d2.engine import HookBase
from vss2.d2.utils import CommonMetricPrinter, EventWriter, comm

logger = logging.getLogger(__name__)


class RunRecord:
    """Checkpointable: the length of the run, and how its data were shared out.

    Args:
        max_iter: of the run that is starting.
        batch_size: clips per batch over all ranks; None where the loader does not say.
    """

    def __init__(self, max_iter: int, batch_size: int | None):
        self.own = {
            "max_iter": max_iter,
            "batch_size": batch_size,
            "world_size": comm.get_world_size(),
        }
        self.stored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.own)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stored = dict(state)

    def settle(self, loader: Any) -> None:
        """Say how this run differs from the stored one; restart the epoch where data do.

        Args:
            loader: the training loader, restored already.
        """
        stored, own = self.stored, self.own
        if not stored:
            return
        if stored["max_iter"] != own["max_iter"]:
            logger.warning(
                "train.max_iter is %d, in the checkpoint it was %d: the learning rate is a "
                "function of iteration / max_iter and follows the new one from here on",
                own["max_iter"],
                stored["max_iter"],
            )
        changed = [k for k in ("batch_size", "world_size") if stored.get(k) != own[k]]
        if not changed or stored.get("batch_size") is None or own["batch_size"] is None:
            return
        what = " and ".join(
            f"{'batch size' if key == 'batch_size' else 'number of processes'} "
            f"({stored.get(key)} in the checkpoint, now {own[key]})"
            for key in changed
        )
        if hasattr(loader, "restart_epoch"):
            loader.restart_epoch(int(stored["batch_size"]))
            logger.warning("another %s: the training data start their epoch again", what)
        else:
            logger.warning("another %s: the training data do not continue where they were", what)


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The settings of each parameter group, "lr" being its rate before the schedule."""
    groups = []
    for group in optimizer.param_groups:
        settings = {k: v for k, v in group.items() if k not in ("params", "initial_lr")}
        settings["lr"] = group.get("initial_lr", group["lr"])
        groups.append(settings)
    return groups


def compare_settings(
    optimizer: torch.optim.Optimizer, config: list[dict[str, Any]], override: bool
) -> None:
    """Say where the restored settings of `optimizer` are not those of the config.

    Args:
        optimizer: restored from a checkpoint.
        config: `settings_of` it before that.
        override: put the config's learning rates and weight decays in force.
    """
    differences: dict[str, None] = {}
    for group, stored, wanted in zip(
        optimizer.param_groups, settings_of(optimizer), config, strict=True
    ):
        for key, value in wanted.items():
            if key not in stored or _plain(stored[key]) == _plain(value):
                continue
            applied = override and key in ("lr", "weight_decay")
            used = "the config's is used" if applied else "the checkpoint's is used"
            differences[f"{key} {_plain(stored[key])}, in the config {_plain(value)} ({used})"] = (
                None
            )
            if applied:
                group["initial_lr" if key == "lr" else key] = value
    if differences:
        hint = "" if override else ". train.resume_override_lr=true takes lr and weight_decay over"
        logger.warning("the checkpoint's optimizer has %s%s", "; ".join(differences), hint)


def _plain(value: Any) -> Any:
    """Sequences of any kind as tuples, so that they compare by content."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return value
    return value.item() if isinstance(value, torch.Tensor) else tuple(value)


class EvaluationRecord(HookBase):
    """Remembers on disk the last evaluation that came to its end, so that none gets lost.

    The last hook but the one that stops: scores are in the files when the record says so. It is
    <folder>/last_evaluation.json, {"iteration": number of the iteration just before}.

    Args:
        folder: of the run.
        writers: of the metrics.
    """

    def __init__(self, folder: Path, writers: list[EventWriter]):
        self.file = folder / "last_evaluation.json"
        # A printer would repeat its line.
        self.writers = [w for w in writers if not isinstance(w, CommonMetricPrinter)]
        self.done: int | None = None

    def forget(self) -> None:
        """The run starts from scratch."""
        if comm.is_main_process():
            self.file.unlink(missing_ok=True)

    def covers(self, iteration: int) -> bool:
        """Whether the evaluation after `iteration` has been done. Every rank must call it."""
        last = -1
        if comm.is_main_process() and self.file.is_file():
            try:
                last = int(json.loads(self.file.read_text())["iteration"])
            except (ValueError, KeyError, TypeError):
                logger.warning("%s is damaged and not used", self.file)
        return comm.all_gather(last)[0] >= iteration

    def after_step(self) -> None:
        if self.done is not None and comm.is_main_process():
            for writer in self.writers:
                writer.write()
            self._store()

    def after_train(self) -> None:
        if self.done is not None and comm.is_main_process():
            self._store()  # the writers have been closed

    def _store(self) -> None:
        with atomic_write(self.file) as temporary:
            temporary.write_text(json.dumps({"iteration": self.done}))
        self.done = None
