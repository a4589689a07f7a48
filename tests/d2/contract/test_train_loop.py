from __future__ import annotations

import gc
import itertools
import logging
import weakref

import pytest
import torch

from tests.d2.engine_helpers import LineModel, captured_logs, line_batches, line_sgd, messages
from vss2.d2 import BACKEND
from vss2.d2.engine import HookBase, SimpleTrainer, TrainerBase
from vss2.d2.utils import get_event_storage, has_event_storage


class Recorder(HookBase):
    """Writes down every call with the trainer's and the storage's iteration."""

    def __init__(self, log, name=""):
        self.log, self.name = log, name

    def _note(self, moment):
        self.log.append((self.name + moment, self.trainer.iter, self.trainer.storage.iter))

    def before_train(self):
        self._note("before_train")

    def after_train(self):
        self._note("after_train")

    def before_step(self):
        self._note("before_step")

    def after_backward(self):
        self._note("after_backward")

    def after_step(self):
        self._note("after_step")


class Loop(TrainerBase):
    """A trainer whose step only notes itself, or fails at `fail_at`."""

    def __init__(self, log, fail_at=None):
        super().__init__()
        self.log, self.fail_at = log, fail_at

    def run_step(self):
        assert get_event_storage() is self.storage
        if self.iter == self.fail_at:
            raise RuntimeError("step failed on purpose")
        self.log.append(("run_step", self.iter, self.storage.iter))


def loop_with_recorder(**kwargs):
    log = []
    trainer = Loop(log, **kwargs)
    trainer.register_hooks([Recorder(log)])
    return trainer, log


def simple_trainer(output="two", loader=None, **kwargs):
    model = LineModel(output)
    return SimpleTrainer(model, loader or line_batches(), line_sgd(model), **kwargs)


# HookBase and TrainerBase


def test_hook_base_does_nothing_and_has_no_state():
    hook = HookBase()
    for moment in ("before_train", "after_train", "before_step", "after_backward", "after_step"):
        assert getattr(hook, moment)() is None
    assert hook.state_dict() == {}


def test_order_of_calls_and_iterations():
    trainer, log = loop_with_recorder()
    trainer.train(3, 5)
    assert log == [
        ("before_train", 3, 3),
        ("before_step", 3, 3),
        ("run_step", 3, 3),
        ("after_step", 3, 3),
        ("before_step", 4, 4),
        ("run_step", 4, 4),
        ("after_step", 4, 4),
        ("after_train", 5, 5),
    ]
    assert (trainer.start_iter, trainer.max_iter, trainer.iter) == (3, 5, 5)
    assert not has_event_storage()


def test_hooks_keep_their_order_and_none_is_dropped():
    log = []
    trainer = Loop(log)
    trainer.register_hooks([Recorder(log, "a."), None, Recorder(log, "b.")])
    trainer.register_hooks([Recorder(log, "c.")])
    trainer.train(0, 1)
    for moment in ("before_train", "before_step", "after_step", "after_train"):
        names = [name for name, *_ in log if name.endswith(moment)]
        assert names == [f"a.{moment}", f"b.{moment}", f"c.{moment}"]


def test_only_hooks_can_be_registered():
    with pytest.raises(AssertionError):
        Loop([]).register_hooks([lambda: None])


def test_a_hook_does_not_keep_its_trainer_alive():
    trainer, hook = Loop([]), HookBase()
    trainer.register_hooks([hook])
    assert isinstance(hook.trainer, weakref.ProxyTypes)
    assert hook.trainer.iter == trainer.iter
    del trainer
    gc.collect()
    with pytest.raises(ReferenceError):
        _ = hook.trainer.iter


def test_an_exception_is_logged_and_raised_after_the_last_hooks():
    trainer, log = loop_with_recorder(fail_at=1)
    with captured_logs() as records, pytest.raises(RuntimeError, match="on purpose"):
        trainer.train(0, 4)
    assert trainer.iter == 1
    assert log[-2:] == [("before_step", 1, 1), ("after_train", 1, 1)]
    errors = [r for r in records if r.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].exc_info[0] is RuntimeError


def test_failure_in_the_last_iteration_looks_almost_done():
    trainer, _ = loop_with_recorder(fail_at=3)
    with captured_logs(), pytest.raises(RuntimeError):
        trainer.train(0, 4)
    assert trainer.iter + 1 == trainer.max_iter


@pytest.mark.parametrize("start", [4, 6])
def test_starting_at_the_end_runs_no_step_but_the_final_hooks(start):
    trainer, log = loop_with_recorder()
    trainer.train(start, 4)
    assert [name for name, *_ in log] == ["before_train", "after_train"]
    assert trainer.iter == start + 1


class Counting(HookBase):
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def test_state_holds_iteration_and_the_first_hook_of_a_class():
    trainer = Loop([])
    trainer.register_hooks([HookBase(), Counting(7), Counting(8)])
    trainer.train(0, 2)
    assert trainer.state_dict() == {"iteration": 2, "hooks": {"Counting": {"value": 7}}}


def test_state_is_restored_and_unknown_hooks_are_a_warning():
    trainer, hook = Loop([]), Counting(0)
    trainer.register_hooks([hook])
    with captured_logs(logging.WARNING) as records:
        trainer.load_state_dict(
            {"iteration": 12, "hooks": {"Counting": {"value": 5}, "GoneHook": {"x": 1}}}
        )
    assert (trainer.iter, hook.value) == (12, 5)
    assert len(records) == 1
    assert "GoneHook" in records[0].getMessage()


def test_training_is_announced_with_its_first_iteration():
    with captured_logs() as records:
        Loop([]).train(7, 8)
    assert any(text.endswith("from iteration 7") for text in messages(records))


# SimpleTrainer


def test_training_reduces_the_loss():
    trainer = simple_trainer()
    trainer.train(0, 60)
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert len(losses) == 60
    assert losses[-1] < 0.2 * losses[0]


def test_scalars_of_several_losses():
    trainer = simple_trainer("two")
    trainer.train(0, 3)
    latest = {name: value for name, (value, _) in trainer.storage.latest().items()}
    assert set(latest) == {"data_time", "rank_data_time", "total_loss", "loss_fit", "loss_size"}
    assert latest["total_loss"] == pytest.approx(latest["loss_fit"] + latest["loss_size"])
    assert latest["data_time"] == latest["rank_data_time"] >= 0
    assert [i for _, i in trainer.storage.history("loss_fit").values()] == [0, 1, 2]


@pytest.mark.parametrize("output", ["one", "tensor"])
def test_scalars_of_a_single_loss(output):
    trainer = simple_trainer(output)
    trainer.train(0, 2)
    assert set(trainer.storage.latest()) == {"data_time", "rank_data_time", "total_loss"}


def test_metrics_are_gathered_by_period():
    trainer = simple_trainer(gather_metric_period=3)
    trainer.train(0, 8)
    assert [i for _, i in trainer.storage.history("total_loss").values()] == [2, 5]


def test_metrics_written_in_a_thread_are_the_same():
    histories = []
    for flag in (False, True):
        trainer = simple_trainer(async_write_metrics=flag)
        trainer.train(0, 10)
        histories.append(trainer.storage.history("total_loss").values())
    assert histories[0] == histories[1]


def test_the_model_is_put_into_training_mode_and_must_stay_there():
    model = LineModel().eval()
    trainer = SimpleTrainer(model, line_batches(), line_sgd(model))
    assert model.training
    model.eval()
    with captured_logs(), pytest.raises(AssertionError):
        trainer.train(0, 1)


def test_after_backward_hooks_see_gradients_before_the_optimizer_step():
    trainer = simple_trainer("one")
    seen = []

    class Look(HookBase):
        def after_backward(self):
            weight = trainer.model.line.weight
            seen.append((weight.grad.item(), weight.item()))

    trainer.register_hooks([Look()])
    trainer.train(0, 1)
    assert seen[0][0] != 0
    assert seen[0][1] == 0.5
    assert trainer.model.line.weight.item() != 0.5


@pytest.mark.parametrize("before_forward", [True, False])
def test_gradients_are_cleared_before_forward_or_before_backward(before_forward):
    grads = []

    class Spy(LineModel):
        def forward(self, batch):
            grads.append(self.line.weight.grad)
            return super().forward(batch)

    model = Spy()
    trainer = SimpleTrainer(
        model, line_batches(), line_sgd(model), zero_grad_before_forward=before_forward
    )
    trainer.train(0, 2)
    assert grads[0] is None
    assert (grads[1] is None) == before_forward


def test_both_ways_of_clearing_train_alike():
    weights = []
    for flag in (True, False):
        trainer = simple_trainer(zero_grad_before_forward=flag)
        trainer.train(0, 5)
        weights.append(trainer.model.line.weight.item())
    assert weights[0] == weights[1]


def test_the_loader_is_opened_at_the_first_step_and_only_once():
    opened = []

    class Loader:
        def __iter__(self):
            opened.append(1)
            return line_batches()

    trainer = simple_trainer(loader=Loader())
    assert opened == []
    trainer.train(0, 3)
    assert opened == [1]
    trainer.reset_data_loader(Loader)
    trainer.train(3, 5)
    assert opened == [1, 1]


def test_a_finite_loader_ends_training():
    trainer = simple_trainer(loader=list(itertools.islice(line_batches(), 2)))
    with captured_logs(), pytest.raises(StopIteration):
        trainer.train(0, 5)
    assert trainer.iter == 2


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_step():
    model = LineModel()
    batch = (torch.ones(1, 1), torch.full((1, 1), float("nan")))
    trainer = SimpleTrainer(model, itertools.repeat(batch), line_sgd(model))
    with captured_logs(), pytest.raises(FloatingPointError, match="infinite or NaN"):
        trainer.train(0, 3)
    assert trainer.iter == 0
    assert model.line.weight.item() == 0.5


@pytest.mark.skipif(BACKEND != "embedded", reason="detectron2 only logs its metric thread's errors")
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_loss_that_is_not_finite_is_noticed_in_a_thread_too(bad):
    batches = list(itertools.islice(line_batches(), 3))
    batches[bad] = (torch.ones(1, 1), torch.full((1, 1), float("nan")))
    trainer = simple_trainer(loader=batches, async_write_metrics=True)
    with captured_logs(), pytest.raises(FloatingPointError):
        trainer.train(0, 3)


def test_state_with_optimizer_continues_exactly():
    whole = simple_trainer()
    whole.train(0, 8)

    first = simple_trainer()
    first.train(0, 4)
    state = first.state_dict()
    assert set(state) == {"iteration", "optimizer"}
    second = simple_trainer(loader=line_batches(4))
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(state)
    assert second.iter == 4
    second.train(4, 8)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])
