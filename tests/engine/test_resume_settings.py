"""What a resumed run does about settings, data shares and evaluations of the run before."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from vss2.checkpoint import read_checkpoint
from vss2.engine import do_train, setup
from vss2.engine.evaluate import Evaluation
from vss2.engine.resume import RunRecord, compare_settings, settings_of

from .conftest import assert_same, read_metrics

EVERYTHING = (
    "train.grad_accum=2",
    "train.clip_grad.enabled=true",
    "train.clip_grad.max_norm=0.1",
    "train.ema.enabled=true",
    "train.ema.decay=0.7",
    "train.nonfinite=skip",
    "train.deterministic=true",
    "train.amp.enabled=true",
    "train.eval_period=2",
)


def train(cfg: Any, resume: bool = False) -> dict[str, Any]:
    setup(cfg)
    return do_train(cfg, resume)


@pytest.fixture(autouse=True)
def _indeterminate_again(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.fixture
def log(caplog):
    logging.getLogger("vss2").propagate = True
    caplog.set_level(logging.INFO, logger="vss2")
    return caplog


def logged(folder: Path) -> str:
    return (folder / "run" / "log.txt").read_text()


class Cut(Exception):
    """Ends a run where a kill would."""


def cut_evaluation(monkeypatch, after: int) -> None:
    """The evaluation after so many good ones does not come to its end."""
    real, calls = Evaluation.__call__, []

    def evaluate(self, model):
        calls.append(1)
        if len(calls) > after:
            raise Cut
        return real(self, model)

    monkeypatch.setattr(Evaluation, "__call__", evaluate)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_everything_at_once_resumes_to_the_same_bits(
    tiny_config, tmp_path: Path, monkeypatch, dtype: str
) -> None:
    options = (*EVERYTHING, f"train.amp.dtype={dtype}", "train.max_iter=6")
    train(tiny_config(*options, f"train.output_dir={tmp_path / 'whole'}"))
    with monkeypatch.context() as m:
        cut_evaluation(m, after=1)
        with pytest.raises(Cut):
            train(tiny_config(*options))
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000003.pth"
    train(tiny_config(*options), resume=True)
    whole, run = (read_checkpoint(tmp_path / f / "model_final.pth") for f in ("whole", "run"))
    assert_same(whole, run)
    assert whole["data"]["batches"] == 12
    assert ("grad_scaler" in whole["trainer"]) == (dtype == "fp16")
    scores = [
        {row["iteration"]: row["sem_seg/aAcc"] for row in read_metrics(tmp_path / f)
         if "sem_seg/aAcc" in row}
        for f in ("whole", "run")
    ]  # fmt: skip
    assert scores[0] == scores[1]
    assert list(scores[0]) == [1, 3, 6]


def test_a_cut_off_evaluation_is_run_on_resume_and_only_then(
    tiny_config, tmp_path: Path, monkeypatch
) -> None:
    options = ("train.max_iter=4", "train.eval_period=2")
    with monkeypatch.context() as m:
        cut_evaluation(m, after=0)
        with pytest.raises(Cut):
            train(tiny_config(*options))
    assert read_checkpoint(tmp_path / "run" / "model_0000001.pth")["iteration"] == 1
    with monkeypatch.context() as m:
        cut_evaluation(m, after=1)
        with pytest.raises(Cut):
            train(tiny_config(*options), resume=True)
    assert logged(tmp_path).count("the evaluation after 2 iterations was cut off: running it") == 1
    scores = [row for row in read_metrics(tmp_path / "run") if "sem_seg/aAcc" in row]
    assert [row["iteration"] for row in scores] == [1]

    results = train(tiny_config(*options), resume=True)
    assert "already finished" in logged(tmp_path)
    assert "the evaluation after 4 iterations was cut off" in logged(tmp_path)
    assert results["sem_seg"]["aAcc"] == read_metrics(tmp_path / "run")[-1]["sem_seg/aAcc"]
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    assert train(tiny_config(*options), resume=True) == {}
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before


def test_another_rate_and_length_are_said_and_taken_over_on_request(
    tiny_config, tmp_path: Path
) -> None:
    train(tiny_config("train.max_iter=2"))
    assert "in the config" not in logged(tmp_path)
    changed = ("optimizer.lr=0.5", "optimizer.params.weight_decay=0.3", "train.log_period=1")
    train(tiny_config("train.max_iter=3", *changed), resume=True)
    assert "lr 0.01, in the config 0.5 (the checkpoint's is used)" in logged(tmp_path)
    assert "weight_decay 0.01, in the config 0.3 (the checkpoint's is used)" in logged(tmp_path)
    assert "train.max_iter is 3, in the checkpoint it was 2" in logged(tmp_path)
    assert read_metrics(tmp_path / "run")[-2]["lr"] == pytest.approx(0.01 * (1 - 0.9 * 2 / 3))

    override = "train.resume_override_lr=true"
    train(tiny_config("train.max_iter=4", *changed, override), resume=True)
    assert "lr 0.01, in the config 0.5 (the config's is used)" in logged(tmp_path)
    assert read_metrics(tmp_path / "run")[-2]["lr"] == pytest.approx(0.5 * (1 - 0.9 * 3 / 4))
    saved = read_checkpoint(tmp_path / "run" / "model_final.pth")["trainer"]["optimizer"]
    assert {group["weight_decay"] for group in saved["param_groups"]} == {0.3}


def test_other_settings_of_the_optimizer_are_said_but_not_taken_over(log) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    stored = torch.optim.AdamW([weight], lr=0.1, betas=(0.9, 0.99))
    wanted = torch.optim.AdamW([weight], lr=0.1, betas=(0.5, 0.99))
    compare_settings(stored, settings_of(wanted), override=True)
    assert "betas (0.9, 0.99), in the config (0.5, 0.99) (the checkpoint's is used)" in log.text
    assert stored.param_groups[0]["betas"] == (0.9, 0.99)


def test_another_batch_size_starts_the_epoch_again(tiny_config, tmp_path: Path) -> None:
    train(tiny_config("train.max_iter=3"))  # 12 clips of 5 videos: in the third pass
    train(tiny_config("train.max_iter=4", "dataloader.train.total_batch_size=2"), resume=True)
    assert "another batch size (4 in the checkpoint, now 2): the training data start" in logged(
        tmp_path
    )
    saved = read_checkpoint(tmp_path / "run" / "model_final.pth")
    assert saved["data"] == {"seed": 7, "batches": 1, "first": 10}
    (tmp_path / "run" / "log.txt").write_text("")
    train(tiny_config("train.max_iter=5", "dataloader.train.total_batch_size=2"), resume=True)
    assert "start their epoch again" not in logged(tmp_path)
    saved = read_checkpoint(tmp_path / "run" / "model_final.pth")
    assert saved["data"] == {"seed": 7, "batches": 2, "first": 10}


def test_another_number_of_processes_starts_the_epoch_again(log) -> None:
    class Loader:
        restarted = 0

        def restart_epoch(self, size: int) -> None:
            self.restarted += size

    record, loader = RunRecord(max_iter=9, batch_size=8), Loader()
    record.load_state_dict({"max_iter": 9, "batch_size": 8, "world_size": 4})
    record.settle(loader)
    assert "another number of processes (4 in the checkpoint, now 1)" in log.text
    assert loader.restarted == 8
    record.settle(object())
    assert "do not continue where they were" in log.text
    same = RunRecord(max_iter=9, batch_size=8)
    same.load_state_dict(record.state_dict())
    same.settle(loader)
    assert loader.restarted == 8


def test_deterministic_runs_are_equal_and_say_so_to_cuda_early(
    tiny_config, tmp_path: Path, monkeypatch
) -> None:
    import os

    from vss2.engine import prepare_environment

    cfg = tiny_config()
    prepare_environment(cfg.train)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    for folder in "ab":
        cfg = tiny_config(
            "train.deterministic=strict",
            "train.max_iter=3",
            f"train.output_dir={tmp_path / folder}",
        )
        prepare_environment(cfg.train)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        train(cfg)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert_same(*(read_checkpoint(tmp_path / f / "model_final.pth") for f in "ab"))
