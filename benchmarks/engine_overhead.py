"""Where the time of a training loop goes, and how much of it is the engine's own.

    python benchmarks/engine_overhead.py [CONFIG] [key=value ...]

Trains CONFIG (default segformer/segformer_toy) for a while and prints, per iteration, the time
spent waiting for data, in forward, backward and optimizer, in evaluations and checkpoints, and the
rest: hooks, metrics, checks, logging. The accuracy that the model logs is shown as a part of its
forward pass. On a GPU every part is waited for, so that parts add up.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from vss2.config import apply_overrides, load_config
from vss2.engine import complete_config, setup
from vss2.engine.train import TrainingRun

WARMUP = 10
ITERATIONS = 60
USEFUL = ("data", "forward", "backward", "optimizer")


class Clock:
    """Adds up the seconds of named parts, after a warm-up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.running = False

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = now()
            try:
                return function(*args, **kwargs)
            finally:
                if self.running:
                    self.seconds[name] += now() - begin

        return call


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class TimedLoader:
    def __init__(self, loader: Any, clock: Clock):
        self.loader, self.clock = loader, clock

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.loader)
        following = self.clock.timed("data", lambda: next(iterator))
        while True:
            yield following()


def measure(cfg: Any) -> tuple[dict[str, float], float]:
    """Seconds of each part, and of the whole loop, over ITERATIONS iterations."""
    run, clock = TrainingRun(cfg), Clock()
    trainer = run.trainer
    trainer.data_loader = TimedLoader(trainer.data_loader, clock)
    trainer.model.forward = clock.timed("forward", trainer.model.forward)
    trainer._optimizer_step = clock.timed("optimizer", trainer._optimizer_step)
    trainer.optimizer.zero_grad = clock.timed("optimizer", trainer.optimizer.zero_grad)
    torch.Tensor.backward = clock.timed("backward", torch.Tensor.backward)
    run.checkpointer.save = clock.timed("checkpoints", run.checkpointer.save)
    run.evaluation = clock.timed("evaluations", run.evaluation)
    model = sys.modules[type(run.model).__module__]
    if hasattr(model, "pixel_accuracy"):
        model.pixel_accuracy = clock.timed("accuracy", model.pixel_accuracy)
    total = 0.0
    real = trainer.before_step

    def before_step() -> None:
        nonlocal total
        if trainer.iter == WARMUP:
            clock.running, total = True, now()
        if trainer.iter == WARMUP + ITERATIONS:
            clock.running, total = False, now() - total
        real()

    trainer.before_step = before_step
    trainer.train(run.restore(False), WARMUP + ITERATIONS + 1)
    return dict(clock.seconds), total


def report(seconds: dict[str, float], total: float) -> float:
    """Print the table; returns the share of the rest."""
    accuracy = seconds.pop("accuracy", None)
    seconds["rest"] = total - sum(seconds.values())
    print("\n| part | ms per iteration | share |\n|---|---:|---:|")
    for name in (*USEFUL, "evaluations", "checkpoints", "rest"):
        spent = seconds.get(name, 0.0)
        print(f"| {name} | {1e3 * spent / ITERATIONS:.2f} | {100 * spent / total:.2f} % |")
        if name == "forward" and accuracy is not None:
            share = f"{100 * accuracy / total:.2f} %"
            print(f"| (of it accuracy) | {1e3 * accuracy / ITERATIONS:.2f} | {share} |")
    print(f"| whole | {1e3 * total / ITERATIONS:.2f} | 100 % |")
    return seconds["rest"] / total


def main(argv: list[str]) -> None:
    name = argv.pop(0) if argv and "=" not in argv[0] else "segformer/segformer_toy"
    cfg = complete_config(load_config(name))
    with tempfile.TemporaryDirectory() as folder:
        apply_overrides(
            cfg,
            [
                f"train.output_dir={folder}",
                f"train.max_iter={WARMUP + ITERATIONS + 1}",
                "train.eval_period=0",
                f"train.checkpointer.period={ITERATIONS // 2}",
                *argv,
            ],
        )
        setup(cfg)
        seconds, total = measure(cfg)
    report(seconds, total)


if __name__ == "__main__":
    main(sys.argv[1:])
