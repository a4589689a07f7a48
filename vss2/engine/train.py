"""Training of a config: detectron2's trainer and hooks, with a resume that is exact."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from vss2.checkpoint import VideoCheckpointer, load_weights
from vss2.d2.config import instantiate
from vss2.d2.engine import hooks
from vss2.d2.utils import EventStorage, comm
from vss2.modeling.compile import compile_targets

from .checkpointing import BestCheckpoint, PeriodicCheckpoint
from .checks import check_classes, check_config, weight_files
from .ema import AverageWeights, WeightAverage
from .evaluate import Evaluation
from .failures import disk_errors
from .interrupt import (
    EvaluationInterrupted,
    InterruptGuard,
    StopAtBoundary,
    TrainingInterrupted,
    save_boundary,
)
from .nonfinite import NonFiniteGuard
from .parallel import ListUnused, broadcast_buffers, convert_norms, distribute
from .random_state import QuietLoader, RandomState
from .resume import EvaluationRecord, RunRecord, compare_settings, settings_of
from .setup import run_device, save_run_config
from .trainer import VideoTrainer
from .writers import build_writers

logger = logging.getLogger(__name__)


def do_train(cfg: DictConfig, resume: bool = False) -> dict[str, Any]:
    """Train what `cfg` describes, evaluating on the way; `setup` must have been called.

    Args:
        cfg: completed config.
        resume: continue from the newest checkpoint of `train.output_dir`, if there is one. The
            run then ends in the same weights as one that was never interrupted.

    Returns:
        Results of the last evaluation; empty where there was none, and on ranks other than 0.

    Raises:
        vss2.errors.InputError: a mistake in the config or its files.
        TrainingInterrupted: Ctrl-C; a checkpoint has been written.
    """
    check_config(cfg, training=True, resume=resume)
    run = TrainingRun(cfg)
    start = run.restore(resume)
    if start >= cfg.train.max_iter:
        logger.info(
            "already finished: the checkpoint is of iteration %d and train.max_iter is %d. "
            "--eval-only --resume evaluates it",
            start,
            cfg.train.max_iter,
        )
        return run.finish(start)
    return run.train(start)


def build_model(cfg: DictConfig) -> nn.Module:
    """The model of `cfg` on the device of this rank; checks its classes against the data sets.

    Raises:
        vss2.errors.InputError: the number of classes differs; it is to be compiled and names no
            targets.
    """
    model = instantiate(cfg.model)
    check_classes(cfg, model)
    model.to(run_device(cfg))
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info(
        "model %s: %s parameters, %s of them trained",
        type(model).__name__,
        _si(count),
        _si(trained),
    )
    options = cfg.train.compile
    if options.enabled:
        compile_targets(model, options.mode, options.dynamic)
    return model


class TrainingRun:
    """Everything that one training holds together.

    Args:
        cfg: completed and checked config, after `setup`.

    Raises:
        vss2.errors.InputError: a mistake in the config or its files.
    """

    def __init__(self, cfg: DictConfig):
        self.cfg = cfg
        self.output_dir = Path(str(cfg.train.output_dir)).expanduser()
        device = run_device(cfg)
        self.model = convert_norms(build_model(cfg), device, bool(cfg.train.sync_bn))
        loader = instantiate(cfg.dataloader.train)
        self.evaluation = Evaluation(cfg) if "test" in cfg.dataloader else None
        self._log_data(loader)
        optimizer = build_optimizer(cfg, self.model)
        wrapped = distribute(cfg, self.model, device)
        self.trainer = build_trainer(cfg, wrapped, QuietLoader(loader), optimizer)
        self.random_state = RandomState(int(cfg.train.seed))
        self.loader = loader
        self.record = RunRecord(int(cfg.train.max_iter), getattr(loader, "total_batch_size", None))
        ema = cfg.train.ema
        self.average = WeightAverage(self.model, float(ema.decay)) if ema.enabled else None
        parts: dict[str, Any] = {
            "trainer": self.trainer,
            "random": self.random_state,
            "run": self.record,
        }
        if self.average is not None:
            parts["ema"] = self.average
        if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
            parts["data"] = loader
        else:
            logger.warning(
                "dataloader.train (%s) keeps no position: a resumed run reads its data from the "
                "start again",
                type(loader).__name__,
            )
        self.checkpointer = RunCheckpointer(
            self.model, str(self.output_dir), trust=bool(cfg.train.trust_checkpoint), **parts
        )
        self.best: BestCheckpoint | None = None
        if cfg.train.best_metric:
            weights = VideoCheckpointer(self.model, str(self.output_dir), tag=False)
            self.best = BestCheckpoint(weights, str(cfg.train.best_metric))
        self.guard = InterruptGuard()
        self.results: dict[str, Any] = {}
        self.trainer.register_hooks(self._hooks(optimizer))

    def restore(self, resume: bool) -> int:
        """Load what the run starts from; returns its first iteration."""
        train = self.cfg.train
        config = settings_of(self.trainer.optimizer)
        path = self.checkpointer.resume() if resume else ""
        if self.best is not None:
            self.best.start(resumed=bool(path))
        if path:
            compare_settings(self.trainer.optimizer, config, bool(train.resume_override_lr))
            self.record.settle(self.loader)
            self._start_average()
            self.checkpointer.saved_iteration = self.trainer.iter
            start = self.trainer.iter + 1
            logger.info("resuming from %s: iteration %d of %d", path, start, train.max_iter)
            if self.random_state.seed != train.seed:
                train.seed = self.random_state.seed
                save_run_config(self.cfg)
            return start
        if resume:
            logger.info("nothing to resume in %s: starting from scratch", self.output_dir)
        elif self.checkpointer.has_checkpoint():
            logger.warning(
                "%s holds the checkpoints of an earlier run, which this run overwrites. "
                "To continue that run use --resume; to keep it choose another train.output_dir",
                self.output_dir,
            )
        if train.init_checkpoint:
            load_weights(
                self.model,
                weight_files(train),
                trust=bool(train.trust_checkpoint),
                allow_mismatched=bool(train.init_allow_mismatch),
                collective=True,
            )
        self.evaluated.forget()
        self._start_average()
        return 0

    def _start_average(self) -> None:
        if self.average is not None:
            self.average.start()

    def train(self, start: int) -> dict[str, Any]:
        """Iterations `start` to `train.max_iter`; see `do_train`."""
        max_iter = int(self.cfg.train.max_iter)
        logger.info(
            "training iterations %d to %d; a checkpoint every %d in %s",
            start,
            max_iter,
            self.cfg.train.checkpointer.period,
            self.output_dir,
        )
        try:
            with self.guard, disk_errors(self.output_dir):
                self._evaluate_cut_off(start - 1)
                self.trainer.train(start, max_iter)
        except EvaluationInterrupted:
            # After the last iteration model_final.pth is there already.
            if self.trainer.iter < max_iter:
                save_boundary(self.checkpointer, self.trainer.iter)
            raise self._interrupted() from None
        except TrainingInterrupted:
            raise self._interrupted() from None
        logger.info("finished; the weights are in %s", self.output_dir / "model_final.pth")
        return self.results

    def finish(self, start: int) -> dict[str, Any]:
        """The final checkpoint and evaluation of a finished run that a kill has cut off."""
        with self.guard, disk_errors(self.output_dir):
            if start == int(self.cfg.train.max_iter):
                self.saving.finish(Path(self.checkpointer.resumed_from))
            self._evaluate_cut_off(int(self.cfg.train.max_iter) - 1)
        return self.results

    def _evaluate_cut_off(self, iteration: int) -> None:
        """Run the evaluation due after `iteration`, the checkpoint's, if a kill cut it off."""
        max_iter, period = int(self.cfg.train.max_iter), int(self.cfg.train.eval_period)
        last = iteration + 1 >= max_iter
        due = last or (iteration >= 0 and period > 0 and (iteration + 1) % period == 0)
        if self.evaluation is None or not due or self.evaluated.covers(iteration):
            return
        logger.info("the evaluation after %d iterations was cut off: running it", iteration + 1)
        self.trainer.max_iter = max_iter
        self.trainer.iter = max_iter if last else iteration
        with EventStorage(self.trainer.iter) as self.trainer.storage:
            for hook in self.evaluation_hooks:
                if last:
                    hook.after_train()
                else:
                    hook.after_step()

    def _interrupted(self) -> TrainingInterrupted:
        done = min(self.trainer.iter + 1, int(self.cfg.train.max_iter))
        return TrainingInterrupted(
            f"stopped after {done} of {self.cfg.train.max_iter} iterations and saved; "
            "the same command with --resume continues"
        )

    def _evaluate(self) -> dict[str, Any]:
        if self.evaluation is None:
            return {}
        done = min(self.trainer.iter, self.trainer.max_iter - 1)
        average = self.average if self.cfg.train.ema.eval else None
        self.guard.evaluating = True
        try:
            with contextlib.nullcontext() if average is None else average.applied():
                self.results = self.evaluation(self.model)
                if self.best is not None:
                    self.best.update(self.results, done)
        finally:
            self.guard.evaluating = False
        self.evaluated.done = done
        return self.results

    def _hooks(self, optimizer: torch.optim.Optimizer) -> list[Any]:
        """In an order that matters: a checkpoint holds the schedule's step, the writer sees all."""
        train, main = self.cfg.train, comm.is_main_process()
        schedule = instantiate(self.cfg.lr_multiplier)
        period, keep = int(train.checkpointer.period), train.checkpointer.max_to_keep
        self.saving = PeriodicCheckpoint(self.checkpointer, period, keep)
        writers = build_writers(self.cfg, self.output_dir) if main else []
        self.evaluated = EvaluationRecord(self.output_dir, writers)
        self.evaluation_hooks = [
            FinalEvalHook(int(train.eval_period), self._evaluate),
            *([hooks.PeriodicWriter(writers, int(train.log_period))] if main else []),
            self.evaluated,
        ]
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(optimizer=optimizer, scheduler=schedule),
            ListUnused(self.model) if train.debug else None,
            None if self.average is None else AverageWeights(self.average),
            self.saving,
            self.best,
            *self.evaluation_hooks,
            StopAtBoundary(self.guard, self.checkpointer, run_device(self.cfg)),
        ]

    def _log_data(self, loader: Any) -> None:
        videos = getattr(loader, "videos", None)
        size = type(loader).__name__ if videos is None else f"{len(videos)} videos"
        batch = int(self.cfg.dataloader.train.get("total_batch_size") or 0)
        clips = f", {batch * self.cfg.train.grad_accum} clips per iteration" if batch else ""
        logger.info("training data: %s%s", size, clips)
        if self.evaluation is not None:
            logger.info("evaluation data: %s", self.evaluation.describe())


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of `cfg` over the parameters of `model` (its node gets `params.model`)."""
    node = cfg.optimizer
    node.params.model = model
    try:
        return instantiate(node)
    finally:
        node.params.pop("model", None)  # the config stays one that can be saved


def build_trainer(
    cfg: DictConfig, model: nn.Module, loader: Any, optimizer: torch.optim.Optimizer
) -> VideoTrainer:
    """The trainer that `cfg.train` asks for; `model` may be wrapped for distributed training."""
    train = cfg.train
    period = train.gather_metric_period or (1 if comm.get_world_size() == 1 else 20)
    clip = train.clip_grad
    return VideoTrainer(
        model,
        loader,
        optimizer,
        device=run_device(cfg),
        amp=str(train.amp.dtype) if train.amp.enabled else None,
        grad_accum=int(train.grad_accum),
        clip_grad=(float(clip.max_norm), float(clip.norm_type)) if clip.enabled else None,
        guard=NonFiniteGuard(str(train.nonfinite), int(train.nonfinite_limit)),
        gather_metric_period=int(period),
    )


class FinalEvalHook(hooks.EvalHook):
    """An EvalHook that does not evaluate at the end of a run that failed in its last iteration.

    It would wait there for ranks that have not failed, too.
    """

    def after_train(self) -> None:
        if self.trainer.iter == self.trainer.max_iter:
            super().after_train()


class RunCheckpointer(VideoCheckpointer):
    """A VideoCheckpointer that first gives every rank the buffers of rank 0.

    A resumed run has them on every rank, so one that goes on must have them too.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        broadcast_buffers(self.model)
        super().save(name, **kwargs)


def _si(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e5 else str(count)
