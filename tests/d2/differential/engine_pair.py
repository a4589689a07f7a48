"""The same script on detectron2 and on the embedded subset, in one process."""

from __future__ import annotations

import importlib
import itertools
import re
from types import SimpleNamespace

import torch
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler

from tests.d2.engine_helpers import LineModel, line_batches

ROOTS = {"detectron2": "detectron2", "embedded": "vss2.d2._embedded"}
MODULES = {
    "build": "data.build",
    "catalog": "data.catalog",
    "checkpoint": "checkpoint",
    "comm": "utils.comm",
    "common": "data.common",
    "config": "config",
    "defaults": "engine.defaults",
    "engine": "engine",
    "evaluator": "evaluation.evaluator",
    "events": "utils.events",
    "hooks": "engine.hooks",
    "samplers": "data.samplers",
    "solver": "solver",
    "testing": "evaluation.testing",
    "train_loop": "engine.train_loop",
}


def backend(name: str) -> SimpleNamespace:
    """The modules of one backend by short names."""
    root = ROOTS[name]
    modules = {key: importlib.import_module(f"{root}.{path}") for key, path in MODULES.items()}
    return SimpleNamespace(name=name, **modules)


def both() -> tuple[SimpleNamespace, SimpleNamespace]:
    """(detectron2, embedded)."""
    return backend("detectron2"), backend("embedded")


def without_numbers(text: str) -> str:
    """A log line with every number replaced by `#`."""
    return re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "#", text)


def train(b: SimpleNamespace, folder: str, end: int, max_iter: int = 30) -> SimpleNamespace:
    """Train a small model from the last checkpoint in `folder`, if any, up to iteration `end`.

    A run that ends before `max_iter` is cut off there by an exception, as by a kill.
    """
    torch.manual_seed(0)
    model = LineModel()
    optimizer = torch.optim.SGD(
        [{"params": [model.line.weight]}, {"params": [model.line.bias], "lr": 0.05}],
        lr=0.1,
        momentum=0.9,
    )
    trainer = b.train_loop.SimpleTrainer(model, None, optimizer)
    checkpointer = b.checkpoint.DetectionCheckpointer(model, folder, trainer=trainer)
    schedule = b.solver.WarmupParamScheduler(PolynomialDecayParamScheduler(1.0, 0.9), 0.1, 0.2)

    def evaluate():
        return {"fit": {"weight": model.line.weight.item(), "bias": model.line.bias.item()}}

    def stop(trainer):
        if trainer.iter + 1 == end < max_iter:
            raise InterruptedError("cut off")

    trainer.register_hooks(
        [
            b.hooks.IterationTimer(),
            b.hooks.LRScheduler(scheduler=schedule),
            b.hooks.PeriodicCheckpointer(checkpointer, 10),
            b.hooks.EvalHook(7, evaluate),
            b.hooks.BestCheckpointer(7, checkpointer, "fit/weight"),
            b.hooks.PeriodicWriter(b.defaults.default_writers(folder, max_iter), period=5),
            b.hooks.CallbackHook(after_step=stop),
        ]
    )
    checkpointer.resume_or_load("", resume=True)
    start = trainer.iter + 1 if checkpointer.has_checkpoint() else 0
    trainer.data_loader = itertools.islice(line_batches(), start, None)
    try:
        trainer.train(start, max_iter)
    except InterruptedError:
        assert end < max_iter
    return SimpleNamespace(model=model, trainer=trainer, start=start)
