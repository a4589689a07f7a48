"""Training runs, loop and hooks on both backends."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import torch
from fvcore.common.param_scheduler import LinearParamScheduler

from tests.d2.differential.engine_pair import ROOTS, both, train, without_numbers
from tests.d2.engine_helpers import (
    LineModel,
    captured_logs,
    line_batches,
    line_sgd,
    messages,
)

pytest.importorskip("detectron2", reason="compares with a real detectron2, and none is installed")

PAIR = both()
REFERENCE, EMBEDDED = PAIR
CLOCKS = ("time", "data_time", "rank_data_time", "eta_seconds")


# Whole runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{backend: (folder, run, log lines)} of 30 iterations with the usual hooks."""
    found = {}
    for b in PAIR:
        folder = tmp_path_factory.mktemp(b.name)
        with captured_logs() as records:
            run = train(b, str(folder), 30)
        found[b.name] = folder, run, messages(records)
    return found


def metrics_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines], lines


def test_metrics_json_after_thirty_iterations(runs):
    (theirs, theirs_all), (ours, ours_all) = (metrics_of(runs[name][0]) for name in ROOTS)
    assert theirs == ours
    assert [sorted(line) for line in theirs_all] == [sorted(line) for line in ours_all]
    assert any("fit/weight" in line for line in ours)


def test_weights_after_thirty_iterations(runs):
    theirs, ours = (runs[name][1].model.state_dict() for name in ROOTS)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def shape_of(value):
    """Nested keys and types; tensors and numbers by value."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shape_of(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def test_checkpoint_files_keys_and_values(runs):
    theirs, ours = (runs[name][0] for name in ROOTS)
    names = sorted(path.name for path in theirs.glob("*.pth"))
    assert names == sorted(path.name for path in ours.glob("*.pth"))
    assert {"model_0000009.pth", "model_final.pth", "model_best.pth"} <= set(names)
    assert (theirs / "last_checkpoint").read_text() == (ours / "last_checkpoint").read_text()
    for name in names:
        states = [torch.load(folder / name, weights_only=False) for folder in (theirs, ours)]
        assert shape_of(states[0]) == shape_of(states[1]), name


def test_log_lines(runs):
    def relevant(lines):
        kept = [without_numbers(line).strip() for line in lines]
        starts = ("eta:", "iter:", "Overall training speed", "Total training time")
        return [line for line in kept if line.startswith(starts)]

    theirs, ours = (relevant(runs[name][2]) for name in ROOTS)
    assert theirs == ours
    assert len(ours) >= 8


@pytest.mark.parametrize(("first", "second"), [PAIR, PAIR[::-1]], ids=["to embedded", "to real"])
def test_a_run_is_continued_by_the_other_backend(tmp_path, runs, first, second):
    with captured_logs():
        train(first, str(tmp_path), 17)
        (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
        run = train(second, str(tmp_path), 30)
    assert run.start == 10
    whole = runs["detectron2"][1]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name])
    rates = [
        [v for v, i in r.trainer.storage.history("lr").values() if i >= 10] for r in (whole, run)
    ]
    assert rates[0] == rates[1]


# Loop


def calls_of(b, start, end, fail_at=None):
    """Everything that a hook sees in one `train`, and how it ended."""
    log = []

    class Loop(b.train_loop.TrainerBase):
        def run_step(self):
            log.append(("run_step", self.iter, self.storage.iter))
            if self.iter == fail_at:
                raise RuntimeError("on purpose")

    moments = ("before_train", "after_train", "before_step", "after_step")

    def note(moment):
        return lambda self: log.append((moment, self.trainer.iter, self.trainer.storage.iter))

    recorder = type("Recorder", (b.train_loop.HookBase,), {m: note(m) for m in moments})
    trainer = Loop()
    trainer.register_hooks([recorder(), None])
    with captured_logs():
        try:
            trainer.train(start, end)
        except RuntimeError:
            log.append("failed")
    return log, trainer.iter, trainer.state_dict()


@pytest.mark.parametrize(
    ("start", "end", "fail_at"),
    [(0, 3, None), (2, 4, None), (4, 4, None), (7, 4, None), (0, 3, 1), (0, 3, 2)],
)
def test_order_of_calls(start, end, fail_at):
    theirs, ours = (calls_of(b, start, end, fail_at) for b in PAIR)
    assert theirs == ours


@pytest.mark.parametrize("output", ["one", "two", "tensor"])
@pytest.mark.parametrize("period", [1, 4])
@pytest.mark.parametrize("before_forward", [True, False])
@pytest.mark.parametrize("in_thread", [True, False])
def test_simple_trainer_scalars(output, period, before_forward, in_thread):
    rows = []
    for b in PAIR:
        model = LineModel(output)
        trainer = b.train_loop.SimpleTrainer(
            model,
            line_batches(),
            line_sgd(model),
            gather_metric_period=period,
            zero_grad_before_forward=before_forward,
            async_write_metrics=in_thread,
        )
        trainer.train(0, 9)
        histories = trainer.storage.histories()
        values = {k: h.values() for k, h in histories.items() if k not in CLOCKS}
        rows.append((sorted(histories), values, shape_of(trainer.state_dict())))
    assert rows[0] == rows[1]


def train_on_nan(b, **kwargs):
    """The type of error in which a loss that is not a number ends, and the weight after it."""
    model = LineModel("one")
    batch = (torch.ones(1, 1), torch.full((1, 1), float("nan")))
    trainer = b.train_loop.SimpleTrainer(model, itertools.repeat(batch), line_sgd(model), **kwargs)
    with captured_logs():
        try:
            trainer.train(0, 3)
        except Exception as error:
            return type(error), model.line.weight.item()
    return None, model.line.weight.item()


def test_loss_that_is_not_finite():
    assert train_on_nan(REFERENCE) == train_on_nan(EMBEDDED) == (FloatingPointError, 0.5)


def test_difference_async_metrics_errors():
    kinds = [train_on_nan(b, async_write_metrics=True)[0] for b in PAIR]
    assert kinds == [None, FloatingPointError]


# Hooks


class Notes:
    """Stands in for a checkpointer."""

    def __init__(self, b):
        outer = self
        self.saved = []

        class Noting(b.checkpoint.Checkpointer):
            def save(self, name, **kwargs):
                outer.saved.append((name, kwargs))

        self.checkpointer = Noting(torch.nn.Linear(1, 1))


def best_saves(b, values, **kwargs):
    notes = Notes(b)

    class Loop(b.train_loop.TrainerBase):
        def run_step(self):
            self.storage.put_scalar("m", values[self.iter], smoothing_hint=False)

    trainer = Loop()
    trainer.register_hooks(
        [b.hooks.BestCheckpointer(checkpointer=notes.checkpointer, val_metric="m", **kwargs)]
    )
    with captured_logs():
        trainer.train(0, len(values))
    return notes.saved


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("period", [0, 1, 3])
def test_best_checkpointer(mode, period):
    rng = random.Random(period)
    for _ in range(10):
        values = [float(rng.randint(0, 6)) for _ in range(12)]
        values[0] = rng.choice([float("nan"), float("inf"), values[0]])
        rows = [best_saves(b, values, mode=mode, eval_period=period) for b in PAIR]
        assert rows[0] == rows[1]


def test_difference_best_checkpointer_infinite():
    rows = [best_saves(b, [1.0, float("inf"), 0.5], eval_period=1) for b in PAIR]
    assert [len(row) for row in rows] == [2, 1]


@pytest.mark.parametrize("keep", [None, 2])
@pytest.mark.parametrize(("period", "end"), [(3, 10), (5, 10), (20, 7)])
def test_periodic_checkpointer_files(tmp_path, period, end, keep):
    rows = []
    for b in PAIR:
        folder = tmp_path / b.name
        folder.mkdir()
        checkpointer = b.checkpoint.Checkpointer(torch.nn.Linear(1, 1), str(folder))
        trainer = type("Loop", (b.train_loop.TrainerBase,), {"run_step": lambda self: None})()
        trainer.register_hooks(
            [b.hooks.PeriodicCheckpointer(checkpointer, period, max_to_keep=keep)]
        )
        with captured_logs():
            trainer.train(0, end)
        rows.append(sorted(path.name for path in folder.iterdir()))
    assert rows[0] == rows[1]


def test_learning_rates_and_recorded_group():
    rng = random.Random(0)
    for _ in range(12):
        sizes = [rng.choice([1, 1, 2, 3]) for _ in range(rng.randint(1, 4))]
        if rng.random() < 0.4:
            sizes = [1] * len(sizes)
        rates = [rng.choice([0.1, 0.2]) for _ in sizes]
        start = rng.choice([0, 3])
        rows = []
        for b in PAIR:
            groups = [
                {
                    "params": [torch.nn.Parameter(torch.zeros(1)) for _ in range(n)],
                    "lr": lr,
                    "initial_lr": lr,
                }
                for n, lr in zip(sizes, rates, strict=True)
            ]
            step = {"run_step": lambda self: self.optimizer.step()}
            loop = type("L", (b.train_loop.TrainerBase,), step)()
            loop.optimizer = torch.optim.SGD(groups, lr=1.0)
            hook = b.hooks.LRScheduler(scheduler=LinearParamScheduler(1.0, 0.0))
            loop.register_hooks([hook])
            loop.train(start, 8)
            last = [group["lr"] for group in loop.optimizer.param_groups]
            rows.append((loop.storage.history("lr").values(), last, hook.state_dict()))
        assert rows[0] == rows[1]


@pytest.mark.parametrize("results", [None, {}, {"a": {"b": 1, "c": {"d": "2.5"}}}, [1], {"a": "x"}])
@pytest.mark.parametrize("after", [True, False])
def test_eval_hook(results, after):
    rows = []
    for b in PAIR:
        loop = type("L", (b.train_loop.TrainerBase,), {"run_step": lambda self: None})()
        loop.register_hooks([b.hooks.EvalHook(2, lambda: results, eval_after_train=after)])
        with captured_logs():
            try:
                loop.train(0, 6)
                kind = None
            except Exception as error:
                kind = type(error)
        histories = {k: h.values() for k, h in loop.storage.histories().items()}
        rows.append((kind, histories, loop.storage.smoothing_hints()))
    assert rows[0] == rows[1]
