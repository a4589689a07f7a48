"""A run of two processes, started once; each test looks at a part of what they wrote down."""

from __future__ import annotations

import itertools
import json
import os
from collections import OrderedDict

import pytest
import torch

from tests.d2.engine_helpers import LineModel, captured_logs, line_batches, line_sgd, messages
from vss2.d2.data import (
    InferenceSampler,
    TrainingSampler,
    build_batch_data_loader,
    build_detection_test_loader,
)
from vss2.d2.engine import HookBase, SimpleTrainer, create_ddp_model, hooks, launch
from vss2.d2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from vss2.d2.utils import comm


class Mean(DatasetEvaluator):
    """Mean over all ranks of what the model gives; a result on rank 0 only."""

    def reset(self):
        self.values = []

    def process(self, inputs, outputs):
        self.values += outputs

    def evaluate(self):
        parts = comm.gather(self.values)
        if not comm.is_main_process():
            return None
        values = list(itertools.chain.from_iterable(parts))
        return {"mean": {"value": sum(values) / len(values), "count": len(values)}}


class GradientHook(HookBase):
    def __init__(self, grads):
        self.grads = grads

    def after_backward(self):
        self.grads.append(self.trainer.model.module.line.weight.grad.item())


def train_with_ddp(report):
    """Two iterations; rank r gets the batches 2k + r, so that gradients must be averaged."""
    model = create_ddp_model(LineModel(), device_ids=None)
    batches = itertools.islice(line_batches(), comm.get_rank(), None, 2)
    trainer = SimpleTrainer(model, batches, line_sgd(model))
    grads = []
    evaluations = []
    trainer.register_hooks(
        [GradientHook(grads), hooks.EvalHook(1, lambda: evaluations.append(trainer.iter))]
    )
    trainer.train(0, 2)
    report["model"] = type(model).__name__
    report["grads"] = grads
    report["evaluations"] = evaluations
    report["scalars"] = sorted(trainer.storage.latest())
    times = comm.gather(trainer.storage.latest()["rank_data_time"][0])
    if comm.is_main_process():
        report["total_loss"] = trainer.storage.history("total_loss").values()[0][0]
        report["data_time_is_max"] = trainer.storage.latest()["data_time"][0] == max(times)


def two_processes(folder, greeting):
    """The body of each process: try everything that needs more than one, write it down."""
    rank = comm.get_rank()
    report = {
        "greeting": greeting,
        "pid": os.getpid(),
        "rank": rank,
        "world": comm.get_world_size(),
        "local": [comm.get_local_rank(), comm.get_local_size()],
        "main": comm.is_main_process(),
        "backend": torch.distributed.get_backend(),
        "gather": comm.gather({"rank": rank}),
        "all_gather": comm.all_gather(["x"] * (rank + 1)),
        "seed": int(comm.shared_random_seed()),
    }
    sampler = TrainingSampler(5)
    report["stream"] = list(itertools.islice(iter(sampler), 10))
    report["batch"] = next(iter(build_batch_data_loader(list(range(5)), sampler, 6)))
    report["shard"] = list(InferenceSampler(5))

    loader = build_detection_test_loader([1.0, 2.0, 3.0, 4.0, 10.0], mapper=None)
    with captured_logs() as records:
        report["results"] = inference_on_dataset(lambda batch: batch, loader, Mean())
    report["log"] = messages(records)
    merged = DatasetEvaluators([Mean()])
    merged.reset()
    merged.process(None, [float(rank)])
    merged_results = merged.evaluate()
    report["merged_type"] = isinstance(merged_results, OrderedDict)
    report["merged"] = merged_results
    train_with_ddp(report)
    comm.synchronize()
    with open(os.path.join(folder, f"rank{rank}.json"), "w") as file:
        json.dump(report, file)


def fail_on_rank_one():
    if comm.get_rank() == 1:
        raise RuntimeError("rank one failed on purpose")


def note(results, value):
    results.append((value, os.getpid(), comm.get_world_size()))


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # gloo, on a machine with GPUs too
        patch.setenv("OMP_NUM_THREADS", "1")
        launch(two_processes, 2, dist_url="auto", args=(str(folder), "hello"))
    return [json.loads((folder / f"rank{r}.json").read_text()) for r in range(2)]


def test_one_process_is_a_direct_call():
    results = []
    assert launch(note, 1, args=(results, 7)) is None
    assert results == [(7, os.getpid(), 1)]
    assert not torch.distributed.is_initialized()


def test_auto_is_for_one_machine():
    with pytest.raises(AssertionError, match="auto"):
        launch(note, 1, num_machines=2, dist_url="auto", args=([], 0))


def test_processes_know_each_other(reports):
    assert [r["rank"] for r in reports] == [0, 1]
    assert [r["world"] for r in reports] == [2, 2]
    assert [r["local"] for r in reports] == [[0, 2], [1, 2]]
    assert [r["main"] for r in reports] == [True, False]
    assert [r["backend"] for r in reports] == ["gloo", "gloo"]
    assert [r["greeting"] for r in reports] == ["hello", "hello"]
    assert len({r["pid"] for r in reports} | {os.getpid()}) == 3


def test_gather_and_all_gather(reports):
    assert reports[0]["gather"] == [{"rank": 0}, {"rank": 1}]
    assert reports[1]["gather"] == []
    for report in reports:
        assert report["all_gather"] == [["x"], ["x", "x"]]
    assert reports[0]["seed"] == reports[1]["seed"]


def test_samplers_share_stream_and_shards(reports):
    stream = list(itertools.chain.from_iterable(zip(*(r["stream"] for r in reports), strict=True)))
    for epoch in range(4):
        assert sorted(stream[5 * epoch : 5 * epoch + 5]) == list(range(5))
    for report in reports:
        assert report["batch"] == report["stream"][:3]
    assert [r["shard"] for r in reports] == [[0, 1, 2], [3, 4]]


def test_evaluation_over_ranks(reports):
    assert reports[0]["results"] == {"mean": {"value": 4.0, "count": 5}}
    assert reports[1]["results"] == {}
    assert any(text == "Start inference on 3 batches" for text in reports[0]["log"])
    assert any("s / iter per device, on 2 devices)" in text for text in reports[0]["log"])
    assert reports[0]["merged"] == {"mean": {"value": 0.5, "count": 2}}
    assert reports[1]["merged"] == {}
    assert all(r["merged_type"] for r in reports)


def test_ddp_training_averages_gradients_and_losses(reports):
    assert [r["model"] for r in reports] == ["DistributedDataParallel"] * 2
    assert reports[0]["grads"] == reports[1]["grads"]
    losses, grads = [], []
    for batch in itertools.islice(line_batches(), 2):
        model = LineModel()
        loss = sum(model(batch).values())
        loss.backward()
        losses.append(loss.item())
        grads.append(model.line.weight.grad.item())
    assert reports[0]["total_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert reports[0]["grads"][0] == pytest.approx(sum(grads) / 2, rel=1e-5)
    assert reports[0]["data_time_is_max"]
    losses_names = {"data_time", "total_loss", "loss_fit", "loss_size"}
    assert set(reports[0]["scalars"]) == losses_names | {"rank_data_time"}
    assert reports[1]["scalars"] == ["rank_data_time"]


def test_evaluation_hook_runs_on_every_rank(reports):
    assert [r["evaluations"] for r in reports] == [[0, 2], [0, 2]]


def test_failure_of_one_process_is_the_failure_of_all(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="on purpose"):
        launch(fail_on_rank_one, 2, dist_url="auto")
