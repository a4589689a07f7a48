"""Hooks that keep a run's checkpoints: periodic ones, of which old ones go, and the best one."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vss2.checkpoint import VideoCheckpointer
from vss2.checkpoint_folder import FINAL, periodic_files, periodic_name, start_afresh
from vss2.checkpoint_io import atomic_write, failing_together
from vss2.d2.engine import HookBase
from vss2.d2.evaluation import flatten_results_dict
from vss2.d2.utils import comm
from vss2.errors import did_you_mean

logger = logging.getLogger(__name__)


class PeriodicCheckpoint(HookBase):
    """Saves every `period` iterations, and model_final.pth after the last one.

    A run that starts from scratch takes the tag from an earlier run in its folder, so that a
    resume never goes on from that one.

    Args:
        checkpointer: of the run.
        period: in iterations.
        max_to_keep: the oldest periodic checkpoints beyond these are deleted once a newer one is
            safe, including those that were saved before a resume; None keeps all. The final and
            the best one stay.
    """

    def __init__(self, checkpointer: VideoCheckpointer, period: int, max_to_keep: int | None):
        self.checkpointer = checkpointer
        self.period = period
        self.max_to_keep = max_to_keep
        self.kept: list[Path] = []

    def before_train(self) -> None:
        start, folder = self.trainer.start_iter, Path(self.checkpointer.save_dir)
        with failing_together():
            if start == 0 and comm.is_main_process():
                start_afresh(folder)
        # Later ones are of a run that this one goes back behind, and are overwritten in turn.
        self.kept = [file for iteration, file in periodic_files(folder) if iteration < start]

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0:
            with failing_together():
                self.checkpointer.save(periodic_name(self.trainer.iter), iteration=done - 1)
            self._delete_old()
        if done >= self.trainer.max_iter:
            with failing_together():
                self.checkpointer.save(FINAL, iteration=done - 1)

    def finish(self, last: Path) -> None:
        """Make the final checkpoint of a finished run that was killed before it wrote it.

        Every rank must call it.

        Args:
            last: the checkpoint after the last iteration.
        """
        with failing_together():
            if comm.is_main_process() and last.stem != FINAL:
                final = last.with_name(f"{FINAL}.pth")
                with atomic_write(final) as temporary:
                    shutil.copyfile(last, temporary)
                self.checkpointer.tag_last_checkpoint(final.name)
                logger.info("%s was missing: made of %s", final, last)

    def _delete_old(self) -> None:
        if not comm.is_main_process():
            return
        self.kept.append(Path(self.checkpointer.get_checkpoint_file()))
        while self.max_to_keep is not None and len(self.kept) > self.max_to_keep:
            file = self.kept.pop(0)
            try:
                file.unlink(missing_ok=True)
            except OSError as e:
                logger.warning("cannot delete the old checkpoint %s: %s", file, e.strerror)


class BestCheckpoint(HookBase):
    """Keeps the weights with the highest value of a metric in model_best.pth.

    The value and its iteration are in every checkpoint and, with the file's name, in
    best_checkpoint.json, so that a resumed run does not take a worse evaluation for the best.

    Args:
        checkpointer: saves weights only, and without tagging them.
        metric: such as "sem_seg/mIoU".
    """

    def __init__(self, checkpointer: VideoCheckpointer, metric: str):
        self.checkpointer = checkpointer
        self.metric = metric
        self.best_metric: float | None = None
        self.best_iter: int | None = None
        self.weights = Path(checkpointer.save_dir) / "model_best.pth"
        self.note = Path(checkpointer.save_dir) / "best_checkpoint.json"

    def start(self, resumed: bool) -> None:
        """Find out what was best so far; after the checkpoint, if any, has been restored."""
        if not comm.is_main_process():
            return
        if not resumed:
            self.note.unlink(missing_ok=True)  # of an earlier run
        elif not self.weights.is_file():
            self.best_metric = self.best_iter = None
        else:
            self._read_note()

    def update(self, results: Mapping[str, Any], iteration: int) -> None:
        """Look at the results of an evaluation, with the model as it was evaluated.

        Every rank must call it.

        Args:
            results: {task: {metric: value}}; rank 0's count.
            iteration: the last one before the evaluation.
        """
        with failing_together():
            if comm.is_main_process():
                self._update(flatten_results_dict(dict(results)), iteration)

    def _update(self, found: Mapping[str, Any], iteration: int) -> None:
        value = found.get(self.metric)
        if value is None:
            hint = did_you_mean(self.metric, found)
            logger.warning("no %s in the results, so no best checkpoint.%s", self.metric, hint)
            return
        value = float(value)
        if not math.isfinite(value):
            logger.warning("%s is %s: not the best checkpoint", self.metric, value)
            return
        if self.best_metric is not None and value <= self.best_metric:
            logger.info(
                "%s is %.5f, the best is %.5f after iteration %d",
                self.metric,
                value,
                self.best_metric,
                self.best_iter,
            )
            return
        self.checkpointer.save(self.weights.stem, iteration=iteration)
        self.best_metric, self.best_iter = value, iteration
        with atomic_write(self.note) as temporary:
            temporary.write_text(json.dumps({"file": self.weights.name, **self.state_dict()}))
        logger.info("the best so far: %s is %.5f after iteration %d", self.metric, value, iteration)

    def _read_note(self) -> None:
        """Take over a best that is newer than the checkpoint that the run goes on from."""
        if not self.note.is_file():
            return
        try:
            noted = json.loads(self.note.read_text())
            value, iteration = float(noted["best_metric"]), int(noted["best_iter"])
            same = noted["metric"] == self.metric
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning("%s is damaged and not used", self.note)
            return
        if same and (self.best_metric is None or value > self.best_metric):
            self.best_metric, self.best_iter = value, iteration

    def state_dict(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "best_metric": self.best_metric,
            "best_iter": self.best_iter,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["metric"] == self.metric:
            self.best_metric, self.best_iter = state["best_metric"], state["best_iter"]
        else:
            logger.info("the best so far was by %s, now it is by %s", state["metric"], self.metric)
