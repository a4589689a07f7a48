from __future__ import annotations

import gc
import json
import logging
import re
import weakref

import pytest
import torch
from fvcore.common.param_scheduler import LinearParamScheduler

from tests.d2.engine_helpers import LineModel, captured_logs, line_batches, line_sgd, messages
from vss2.d2.checkpoint import Checkpointer
from vss2.d2.checkpoint import PeriodicCheckpointer as FvcorePeriodicCheckpointer
from vss2.d2.engine import HookBase, SimpleTrainer, TrainerBase, hooks
from vss2.d2.utils import EventWriter, JSONWriter, comm


class Idle(TrainerBase):
    """A trainer whose step puts the scalars that `scalars(iter)` gives."""

    def __init__(self, scalars=None, fail_at=None):
        super().__init__()
        self.scalars, self.fail_at = scalars, fail_at

    def run_step(self):
        if self.iter == self.fail_at:
            raise RuntimeError("step failed on purpose")
        if self.scalars is not None:
            self.storage.put_scalars(smoothing_hint=False, **self.scalars(self.iter))


def run(hook_list, start=0, end=10, **kwargs):
    trainer = Idle(**kwargs)
    trainer.register_hooks(hook_list)
    trainer.train(start, end)
    return trainer


class FakeCheckpointer(Checkpointer):
    """Notes what would be saved."""

    def __init__(self):
        super().__init__(torch.nn.Linear(1, 1))
        self.saved = []

    def save(self, name, **kwargs):
        self.saved.append((name, kwargs))


# CallbackHook


def test_callback_hook_calls_its_functions_with_the_trainer():
    calls = []

    def note(moment):
        return lambda trainer: calls.append((moment, trainer.iter))

    run(
        [
            hooks.CallbackHook(
                before_train=note("before_train"),
                after_train=note("after_train"),
                before_step=note("before_step"),
                after_step=note("after_step"),
            )
        ],
        end=2,
    )
    assert calls == [
        ("before_train", 0),
        ("before_step", 0),
        ("after_step", 0),
        ("before_step", 1),
        ("after_step", 1),
        ("after_train", 2),
    ]


def test_callback_hook_may_have_one_function_and_lets_it_go():
    calls = []

    def after_step(trainer):
        calls.append(trainer.iter)

    hook = hooks.CallbackHook(after_step=after_step)
    run([hook], end=3)
    assert calls == [0, 1, 2]
    function = weakref.ref(after_step)
    del after_step
    gc.collect()
    assert function() is None
    with pytest.raises(TypeError):
        hooks.CallbackHook(print)


# IterationTimer


def test_iteration_timer_puts_time_from_the_warm_up_on_and_logs_the_speed():
    with captured_logs() as records:
        trainer = run([hooks.IterationTimer(warmup_iter=3)], start=5, end=15)
    values = trainer.storage.history("time").values()
    assert [i for _, i in values] == list(range(7, 15))
    assert all(0 <= seconds < 5 for seconds, _ in values)
    texts = messages(records)
    speed = r"Overall training speed: 8 iterations in \d+:\d\d:\d\d \(\d+\.\d{4} s / it\)"
    total = r"Total training time: \d+:\d\d:\d\d \(\d+:\d\d:\d\d on hooks\)"
    assert sum(bool(re.fullmatch(speed, text)) for text in texts) == 1
    assert sum(bool(re.fullmatch(total, text)) for text in texts) == 1


def test_iteration_timer_of_a_run_without_timed_steps_logs_only_the_total():
    with captured_logs() as records:
        run([hooks.IterationTimer()], start=3, end=3)
    texts = messages(records)
    assert not any("Overall training speed" in text for text in texts)
    assert any("Total training time" in text for text in texts)


# LRScheduler


class WithOptimizer(Idle):
    def __init__(self, lr=0.1):
        super().__init__()
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)

    def run_step(self):
        self.optimizer.step()


def rates(trainer):
    return [value for value, _ in trainer.storage.history("lr").values()]


def test_lr_scheduler_turns_a_param_scheduler_into_factors():
    trainer = WithOptimizer(lr=0.1)
    trainer.register_hooks([hooks.LRScheduler(scheduler=LinearParamScheduler(1.0, 0.0))])
    trainer.train(0, 10)
    assert rates(trainer) == pytest.approx([0.1 * (1 - i / 10) for i in range(10)])
    assert trainer.storage.smoothing_hints()["lr"] is False


def test_lr_scheduler_of_a_param_scheduler_follows_from_the_iteration_on_resume():
    trainer = WithOptimizer(lr=0.1)
    hook = hooks.LRScheduler(scheduler=LinearParamScheduler(1.0, 0.0))
    trainer.register_hooks([hook])
    trainer.train(0, 10)
    assert set(hook.state_dict()) == {"base_lrs", "last_epoch"}

    resumed = WithOptimizer(lr=77.0)
    again = hooks.LRScheduler(scheduler=LinearParamScheduler(1.0, 0.0))
    resumed.register_hooks([again])
    resumed.optimizer.load_state_dict(trainer.optimizer.state_dict())
    again.load_state_dict({"base_lrs": [123.0], "last_epoch": 55})
    resumed.train(4, 10)
    assert rates(resumed) == pytest.approx([0.1 * (1 - i / 10) for i in range(4, 10)])


def test_lr_scheduler_with_a_torch_scheduler_saves_and_restores_it():
    def build():
        trainer = WithOptimizer(lr=1.0)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(trainer.optimizer, gamma=0.5)
        hook = hooks.LRScheduler(optimizer=trainer.optimizer, scheduler=scheduler)
        trainer.register_hooks([hook])
        return trainer, hook

    first, hook = build()
    first.train(0, 3)
    assert rates(first) == [1.0, 0.5, 0.25]
    state = first.state_dict()["hooks"]["LRScheduler"]
    assert state["last_epoch"] == 3
    _, hook = build()
    hook.load_state_dict(state)
    assert hook.scheduler.last_epoch == 3


def test_lr_scheduler_takes_the_trainers_optimizer_and_scheduler():
    trainer = WithOptimizer(lr=1.0)
    trainer.scheduler = torch.optim.lr_scheduler.ExponentialLR(trainer.optimizer, gamma=0.1)
    trainer.register_hooks([hooks.LRScheduler()])
    trainer.train(0, 2)
    assert rates(trainer) == pytest.approx([1.0, 0.1])


def params(count):
    return [torch.nn.Parameter(torch.zeros(1)) for _ in range(count)]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([(1, 0.1), (3, 0.2), (2, 0.3)], 0.2),
        ([(1, 0.5), (1, 0.1), (1, 0.1)], 0.1),
    ],
)
def test_lr_scheduler_records_the_rate_of_most_parameters(groups, expected):
    trainer = WithOptimizer()
    trainer.optimizer = torch.optim.SGD(
        [{"params": params(count), "lr": lr} for count, lr in groups], lr=1.0
    )
    trainer.register_hooks([hooks.LRScheduler(scheduler=LinearParamScheduler(1.0, 1.0))])
    trainer.train(0, 1)
    assert rates(trainer) == [expected]


# PeriodicCheckpointer


def test_periodic_checkpointer_is_a_hook_and_fvcores():
    hook = hooks.PeriodicCheckpointer(FakeCheckpointer(), 4)
    assert isinstance(hook, HookBase)
    assert isinstance(hook, FvcorePeriodicCheckpointer)


def test_periodic_checkpointer_saves_by_period_and_at_the_end():
    checkpointer = FakeCheckpointer()
    run([hooks.PeriodicCheckpointer(checkpointer, 4)], end=10)
    assert checkpointer.saved == [
        ("model_0000003", {"iteration": 3}),
        ("model_0000007", {"iteration": 7}),
        ("model_final", {"iteration": 9}),
    ]


def test_periodic_checkpointer_saves_both_where_they_coincide():
    checkpointer = FakeCheckpointer()
    run([hooks.PeriodicCheckpointer(checkpointer, 5, file_prefix="net")], end=5)
    assert [name for name, _ in checkpointer.saved] == ["net_0000004", "net_final"]


def test_periodic_checkpointer_keeps_the_newest_files(tmp_path):
    checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(tmp_path))
    with captured_logs():
        run([hooks.PeriodicCheckpointer(checkpointer, 2, max_to_keep=2)], end=9)
    names = sorted(p.name for p in tmp_path.glob("*.pth"))
    assert names == ["model_0000005.pth", "model_0000007.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


# EvalHook


def test_eval_hook_runs_by_period_and_after_training():
    at, barriers = [], []
    trainer = Idle()

    def evaluate():
        at.append(trainer.iter)
        return {"sem_seg": {"mIoU": 10.0 * len(at), "VC8": {"mean": 1}}, "speed": 2}

    trainer.register_hooks([hooks.EvalHook(3, evaluate)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comm, "synchronize", lambda: barriers.append(trainer.iter))
        trainer.train(0, 9)
    assert at == barriers == [2, 5, 9]
    storage = trainer.storage
    assert storage.latest()["sem_seg/mIoU"] == (30.0, 9)
    assert storage.latest()["sem_seg/VC8/mean"] == (1.0, 9)
    assert [i for _, i in storage.history("speed").values()] == [2, 5, 9]
    assert storage.smoothing_hints()["sem_seg/mIoU"] is False


@pytest.mark.parametrize(("period", "after", "count"), [(0, True, 1), (0, False, 0), (3, False, 2)])
def test_eval_hook_period_zero_and_no_final_evaluation(period, after, count):
    calls = []
    run([hooks.EvalHook(period, lambda: calls.append(1), eval_after_train=after)], end=9)
    assert len(calls) == count


@pytest.mark.parametrize("nothing", [None, {}])
def test_eval_hook_may_have_no_result(nothing):
    trainer = run([hooks.EvalHook(2, lambda: nothing)], end=4)
    assert trainer.storage.latest() == {}


def test_eval_hook_results_must_be_numbers_in_dicts():
    with captured_logs(), pytest.raises(AssertionError):
        run([hooks.EvalHook(1, lambda: [1.0], eval_after_train=False)], end=3)
    with captured_logs(), pytest.raises(ValueError, match="sem_seg/name"):
        run(
            [hooks.EvalHook(1, lambda: {"sem_seg": {"name": "x"}}, eval_after_train=False)],
            end=3,
        )


@pytest.mark.parametrize(("fail_at", "count"), [(4, 0), (8, 1)])
def test_eval_hook_after_a_failure_runs_only_if_that_was_in_the_last_iteration(fail_at, count):
    calls = []
    with captured_logs(), pytest.raises(RuntimeError):
        run([hooks.EvalHook(0, lambda: calls.append(1))], end=9, fail_at=fail_at)
    assert len(calls) == count


# BestCheckpointer


def best_run(values, mode="max", period=1, **kwargs):
    checkpointer = FakeCheckpointer()
    hook = hooks.BestCheckpointer(period, checkpointer, "sem_seg/mIoU", mode, **kwargs)
    series = dict(enumerate(values))

    def scalars(iteration):
        return {"sem_seg/mIoU": series[iteration]} if iteration in series else {}

    with captured_logs():
        run([hook], end=len(values), scalars=scalars)
    return [(name, extra["iteration"]) for name, extra in checkpointer.saved]


def test_best_checkpointer_saves_each_new_best():
    assert best_run([1, 3, 2, 3, 5]) == [("model_best", i) for i in (0, 1, 4)]
    assert best_run([1, 3, 0, 2], mode="min") == [("model_best", i) for i in (0, 2)]


def test_best_checkpointer_looks_by_period_and_after_training():
    assert best_run([9, 3, 8, 4, 5, 6], period=2) == [("model_best", i) for i in (1, 3, 5)]
    assert best_run([9, 3, 8], period=0, file_prefix="top") == [("top", 2)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_best_checkpointer_never_begins_with_what_is_not_finite(bad):
    assert best_run([bad, 2.0]) == [("model_best", 1)]


def test_best_checkpointer_without_its_metric_warns():
    checkpointer = FakeCheckpointer()
    with captured_logs(logging.WARNING) as records:
        run([hooks.BestCheckpointer(1, checkpointer, "sem_seg/mIoU")], end=1)
    assert checkpointer.saved == []
    assert records
    assert all("sem_seg/mIoU" in text for text in messages(records))


def test_best_checkpointer_knows_two_modes_and_has_no_state():
    with pytest.raises(AssertionError):
        hooks.BestCheckpointer(1, FakeCheckpointer(), "m", mode="best")
    assert hooks.BestCheckpointer(1, FakeCheckpointer(), "m").state_dict() == {}


def test_best_checkpointer_sees_the_evaluation_of_the_same_iteration():
    checkpointer = FakeCheckpointer()
    scores = iter([5.0, 4.0, 6.0])
    run(
        [
            hooks.EvalHook(2, lambda: {"sem_seg": {"mIoU": next(scores)}}),
            hooks.BestCheckpointer(2, checkpointer, "sem_seg/mIoU"),
        ],
        end=6,
    )
    assert [extra["iteration"] for _, extra in checkpointer.saved] == [1, 6]


# PeriodicWriter


class NotingWriter(EventWriter):
    def __init__(self, log):
        self.log = log

    def write(self):
        self.log.append("write")

    def close(self):
        self.log.append("close")


def test_periodic_writer_writes_by_period_at_the_last_step_and_after_training():
    log = []
    note = hooks.CallbackHook(after_step=lambda trainer: log.append(trainer.iter))
    run([note, hooks.PeriodicWriter([NotingWriter(log)], period=4)], end=10)
    expected = [0, 1, 2, 3, "write", 4, 5, 6, 7, "write", 8, 9, "write", "write", "close"]
    assert log == expected


def test_periodic_writer_takes_writers_only():
    with pytest.raises(AssertionError):
        hooks.PeriodicWriter([print])


def test_all_hooks_together_write_metrics_json(tmp_path):
    model = LineModel()
    trainer = SimpleTrainer(model, line_batches(), line_sgd(model))
    scores = iter([50.0, 60.0])
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=LinearParamScheduler(1.0, 0.0)),
            hooks.EvalHook(10, lambda: {"sem_seg": {"mIoU": next(scores)}}),
            hooks.PeriodicWriter([JSONWriter(str(tmp_path / "metrics.json"))], period=5),
        ]
    )
    with captured_logs():
        trainer.train(0, 20)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [4, 9, 14, 19, 20]
    assert [line.get("sem_seg/mIoU") for line in lines] == [None, 50.0, None, None, 60.0]
    assert {"lr", "time", "data_time", "total_loss", "loss_fit", "loss_size"} <= set(lines[0])
