from __future__ import annotations

import logging
import re
import time
from collections import OrderedDict

import pytest
import torch
from torch import nn

from tests.d2.engine_helpers import captured_logs, messages
from vss2.d2 import BACKEND
from vss2.d2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    flatten_results_dict,
    inference_context,
    inference_on_dataset,
    print_csv_format,
)

SECONDS = r"\d+\.\d{4} s/iter"
PROGRESS = re.compile(
    rf"Inference done \d+/\d+\. Dataloading: {SECONDS}\. Inference: {SECONDS}\. "
    rf"Eval: {SECONDS}\. Total: {SECONDS}\. ETA=\d+:\d\d:\d\d"
)
TOTAL = re.compile(
    r"Total inference time: \d+:\d\d:\d\d(\.\d+)? "
    r"\(\d+\.\d{6} s / iter per device, on 1 devices\)"
)
COMPUTE = re.compile(
    r"Total inference pure compute time: \d+:\d\d:\d\d "
    r"\(\d+\.\d{6} s / iter per device, on 1 devices\)"
)


class Summing(DatasetEvaluator):
    def __init__(self, task="sum", log=None):
        self.task, self.log = task, log if log is not None else []

    def reset(self):
        self.log.append("reset")
        self.total = 0.0

    def process(self, inputs, outputs):
        self.log.append("process")
        self.total += sum(outputs)

    def evaluate(self):
        self.log.append("evaluate")
        return {self.task: {"total": self.total}} if self.task else None


class Doubling(nn.Module):
    """Notes the mode that it runs in."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Dropout()
        self.seen = set()

    def forward(self, batch):
        self.seen.add((self.training, self.inner.training, torch.is_grad_enabled()))
        return [2 * x for x in batch]


def test_evaluator_base_has_the_three_methods():
    evaluator = DatasetEvaluator()
    assert evaluator.reset() is None
    assert evaluator.process([], []) is None
    assert evaluator.evaluate() is None


def test_evaluators_as_one():
    log = []
    both = DatasetEvaluators([Summing("a", log), Summing("b", log), Summing(None, log)])
    both.reset()
    both.process([1], [1])
    results = both.evaluate()
    assert results == {"a": {"total": 1}, "b": {"total": 1}}
    assert isinstance(results, OrderedDict)
    assert log == ["reset"] * 3 + ["process"] * 3 + ["evaluate"] * 3


def test_two_evaluators_of_one_task_clash():
    both = DatasetEvaluators([Summing("a"), Summing("a")])
    both.reset()
    with pytest.raises(AssertionError, match="a"):
        both.evaluate()


def test_inference_runs_in_eval_mode_without_gradients():
    model, log = Doubling().train(), []
    with captured_logs():
        results = inference_on_dataset(model, [[1, 2], [3]], Summing("sum", log))
    assert results == {"sum": {"total": 12.0}}
    assert log == ["reset", "process", "process", "evaluate"]
    assert model.seen == {(False, False, False)}
    assert model.training
    assert model.inner.training
    assert torch.is_grad_enabled()


def test_inference_keeps_a_model_that_was_in_eval_mode():
    model = Doubling().eval()
    with captured_logs():
        inference_on_dataset(model, [[1]], Summing())
    assert not model.training


def test_inference_takes_one_several_or_no_evaluator():
    with captured_logs():
        assert inference_on_dataset(list, [[1], [2]], [Summing("a"), Summing("b")]) == {
            "a": {"total": 3.0},
            "b": {"total": 3.0},
        }
        assert inference_on_dataset(list, [[1], [2]], None) == {}
        assert inference_on_dataset(list, [[1], [2]], Summing(None)) == {}


def test_inference_over_nothing():
    with captured_logs() as records:
        assert inference_on_dataset(list, [], Summing()) == {"sum": {"total": 0.0}}
    assert messages(records)[0] == "Start inference on 0 batches"


def test_inference_needs_a_length():
    with captured_logs(), pytest.raises(TypeError):
        inference_on_dataset(list, iter([[1]]), Summing())


@pytest.mark.parametrize("count", [1, 3, 20])
def test_inference_log_lines(count):
    with captured_logs() as records:
        inference_on_dataset(list, [[1]] * count, Summing())
    texts = messages(records)
    assert texts[0] == f"Start inference on {count} batches"
    assert TOTAL.fullmatch(texts[-2])
    assert COMPUTE.fullmatch(texts[-1])
    progress = texts[1:-2]
    assert all(PROGRESS.fullmatch(text) for text in progress)
    assert all(f"/{count}. " in text for text in progress)
    assert {r.levelno for r in records} == {logging.INFO}


def test_inference_progress_comes_after_the_warm_up_and_not_too_often(monkeypatch):
    # A clock on which a batch takes one second. It begins after any line that was logged so far.
    now = [time.time() + 1e6]
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def model(batch):
        now[0] += 1.0
        return batch

    with captured_logs() as records:
        inference_on_dataset(model, [[1]] * 30, Summing())
    progress = [text for text in messages(records) if text.startswith("Inference done")]
    numbers = [int(re.match(r"Inference done (\d+)/30", text).group(1)) for text in progress]
    assert numbers == [11, 16, 21, 26]
    assert "Inference: 1.0000 s/iter" in progress[-1]
    assert progress[-1].endswith("ETA=0:00:04")


def test_inference_warm_up_is_not_counted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    batches = []

    def model(batch):
        now[0] += 100.0 if len(batches) < 5 else 0.5
        batches.append(batch)
        return batch

    with captured_logs() as records:
        inference_on_dataset(model, [[1]] * 9, Summing())
    texts = messages(records)
    assert "(0.500000 s / iter" in texts[-2]
    assert "(0.500000 s / iter" in texts[-1]


def test_inference_callbacks():
    log = []
    names = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {name: lambda name=name: log.append(name) for name in names}

    def model(batch):
        log.append("model")
        return batch

    with captured_logs():
        inference_on_dataset(model, [[1], [2]], Summing(), callbacks=callbacks)
    once = ["before_inference", "model", "after_inference"]
    assert log == ["on_start", *once, *once, "on_end"]


def test_inference_context_restores_the_mode():
    for training in (True, False):
        model = nn.Sequential(nn.Dropout()).train(training)
        with inference_context(model):
            assert not model.training
            assert not model[0].training
        assert model.training is training
        assert model[0].training is training


def test_inference_context_after_an_error():
    model = nn.Linear(1, 1).train()
    with pytest.raises(RuntimeError), inference_context(model):
        raise RuntimeError
    assert model.training is (BACKEND == "embedded")


def csv_lines(results):
    with captured_logs() as records:
        print_csv_format(results)
    return messages(records)


def test_csv_format():
    results = OrderedDict(
        sem_seg={"mIoU": 12.34567, "IoU-sky": 99.0, "VC8": 50}, boundary={"F": float("nan")}
    )
    assert csv_lines(results) == [
        "copypaste: Task: sem_seg",
        "copypaste: mIoU,VC8",
        "copypaste: 12.3457,50.0000",
        "copypaste: Task: boundary",
        "copypaste: F",
        "copypaste: nan",
    ]


def test_csv_format_of_other_results():
    assert csv_lines({}) == []
    assert csv_lines({"speed": 3.5}) == ["copypaste: speed=3.5"]
    with captured_logs(), pytest.raises(TypeError):
        print_csv_format({"sem_seg": {"mIoU": None}})


def test_flatten_results():
    nested = {"a": {"b": 1, "c": OrderedDict(d=2)}, "e": 3}
    assert flatten_results_dict(nested) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert flatten_results_dict({}) == {}
