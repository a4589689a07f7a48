from __future__ import annotations

import time

import pytest
from torch import nn

from tests.d2.differential.engine_pair import both
from tests.d2.engine_helpers import captured_logs, messages

pytest.importorskip("detectron2", reason="compares with a real detectron2, and none is installed")

PAIR = both()
RESULTS = {
    "sem_seg": {"mIoU": 41.23456, "IoU-sky": 3.0, "VC8": 90, "fwIoU": float("nan")},
    "empty": {},
    "speed": 12.5,
}


def lines_of(function, *args):
    with captured_logs() as records:
        function(*args)
    return messages(records)


def test_csv_lines():
    lines = [lines_of(b.testing.print_csv_format, RESULTS) for b in PAIR]
    assert lines[0] == lines[1]
    for b in PAIR:
        with captured_logs(), pytest.raises(TypeError):
            b.testing.print_csv_format({"a": {"b": None}})


def test_flat_results():
    nested = {"a": {"b": {"c": 1, "d": [2]}, "e": 3}, "f": 4, "g": {}}
    flat = [b.testing.flatten_results_dict(nested) for b in PAIR]
    assert flat[0] == flat[1]
    assert list(flat[0]) == list(flat[1])


def evaluator_of(b, task, value):
    class Fixed(b.evaluator.DatasetEvaluator):
        def reset(self):
            self.count = 0

        def process(self, inputs, outputs):
            self.count += len(outputs)

        def evaluate(self):
            return {task: {"value": value, "count": self.count}} if task else None

    return Fixed()


@pytest.mark.parametrize("tasks", [["a"], ["a", "b"], ["a", None], []])
def test_merged_results(tasks):
    rows = []
    for b in PAIR:
        evaluators = b.evaluator.DatasetEvaluators(
            [evaluator_of(b, task, i) for i, task in enumerate(tasks)]
        )
        evaluators.reset()
        evaluators.process([1, 2], [1, 2])
        rows.append(evaluators.evaluate())
    assert rows[0] == rows[1]
    assert type(rows[0]) is type(rows[1])


def test_clashing_results():
    for b in PAIR:
        clashing = b.evaluator.DatasetEvaluators([evaluator_of(b, "a", 1) for _ in "xy"])
        clashing.reset()
        with pytest.raises(AssertionError):
            clashing.evaluate()


@pytest.mark.parametrize(("count", "seconds"), [(0, 1.0), (1, 1.0), (4, 7.0), (40, 0.75)])
def test_inference_results_and_log_lines(monkeypatch, count, seconds):
    """The same lines on a clock that only the model, loader and evaluator move."""
    rows = []
    for shift, b in enumerate(PAIR):
        now = [time.time() + 1e6 * (shift + 1)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.time", lambda now=now: now[0])
            patch.setattr("time.perf_counter", lambda now=now: now[0])

            def model(batch, now=now):
                now[0] += seconds
                return batch

            class Slow(b.evaluator.DatasetEvaluator):
                def process(self, inputs, outputs, now=now):
                    now[0] += 0.25

            class Loader:
                def __len__(self):
                    return count

                def __iter__(self, now=now):
                    for i in range(count):
                        now[0] += 0.125
                        yield [i]

            with captured_logs() as records:
                results = b.evaluator.inference_on_dataset(model, Loader(), Slow())
        rows.append((results, messages(records)))
    assert rows[0] == rows[1]
    assert rows[1][1][0] == f"Start inference on {count} batches"


@pytest.mark.parametrize("training", [True, False])
def test_callbacks_modes_and_several_evaluators(training):
    rows = []
    for b in PAIR:
        log = []

        class Model(nn.Module):
            def forward(self, batch, log=log):
                log.append(("model", self.training))
                return batch

        model = Model().train(training)
        names = ("on_start", "before_inference", "after_inference", "on_end")
        callbacks = {name: lambda name=name, log=log: log.append(name) for name in names}
        with captured_logs():
            results = b.evaluator.inference_on_dataset(
                model,
                [[1], [2, 3]],
                [evaluator_of(b, "a", 1), evaluator_of(b, "b", 2)],
                callbacks=callbacks,
            )
        rows.append((log, results, model.training))
    assert rows[0] == rows[1]


def test_difference_inference_context_error():
    modes = []
    for b in PAIR:
        model = nn.Linear(1, 1).train()
        with pytest.raises(RuntimeError), b.evaluator.inference_context(model):
            raise RuntimeError
        modes.append(model.training)
    assert modes == [False, True]
