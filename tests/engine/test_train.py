"""Training in this process: what is written, and what an evaluation must not change."""

from __future__ import annotations

import logging
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from vss2.checkpoint import read_checkpoint
from vss2.config import load_config
from vss2.d2.config import instantiate
from vss2.engine import build_model, do_eval, do_train, setup
from vss2.engine.random_state import RandomState, preserved_random_state
from vss2.errors import InputError

from .conftest import assert_same, read_metrics


def train(cfg):
    setup(cfg)
    return do_train(cfg)


def test_evaluating_does_not_change_the_training(tiny_config, tmp_path: Path) -> None:
    for folder, period in (("often", 1), ("never", 0)):
        cfg = tiny_config(f"train.output_dir={tmp_path / folder}", f"train.eval_period={period}")
        train(cfg)
    often, never = (read_checkpoint(tmp_path / f / "model_final.pth") for f in ("often", "never"))
    for part in ("model", "data", "random"):
        assert_same(often[part], never[part])
    assert_same(often["trainer"]["optimizer"], never["trainer"]["optimizer"])


def test_training_learns_and_returns_the_last_results(tiny_config, tmp_path: Path) -> None:
    results = train(
        tiny_config("train.max_iter=60", "optimizer.lr=0.05", "train.checkpointer.period=60")
    )
    rows = read_metrics(tmp_path / "run")
    assert results["sem_seg"]["aAcc"] == rows[-1]["sem_seg/aAcc"]
    assert results["sem_seg"]["aAcc"] > 90
    log = (tmp_path / "run" / "log.txt").read_text()
    rate = (
        r"evaluated 20 frames of 5 videos on this process: [\d.]+ frames/s, [\d.]+ without loading"
    )
    assert re.search(rate + r"; peak process memory \d+ MB", log)
    assert rows[-2]["loss_ce"] < rows[0]["loss_ce"] / 2


def test_the_schedule_reaches_the_optimizer(tiny_config, tmp_path: Path) -> None:
    train(tiny_config("train.log_period=1", "train.max_iter=4"))
    rates = [row["lr"] for row in read_metrics(tmp_path / "run") if "lr" in row]
    expected = [0.01 * (1 - 0.9 * i / 4) for i in range(4)]
    assert rates[:4] == pytest.approx(expected)


def test_best_checkpoint_is_not_what_a_resume_continues_from(tiny_config, tmp_path: Path) -> None:
    train(tiny_config("train.best_metric=sem_seg/aAcc", "train.max_iter=6"))
    folder = tmp_path / "run"
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    best = read_checkpoint(folder / "model_best.pth")
    assert set(best) == {"model", "iteration"}


def test_saved_config_and_checkpoint_load_back(tiny_config, tmp_path: Path) -> None:
    cfg = tiny_config("train.max_iter=2", "+model.dropout=0.25")
    train(cfg)
    folder = tmp_path / "run"
    again = load_config(folder / "config.yaml")
    assert again.model.dropout == 0.25
    assert again.train.seed == 7
    model = instantiate(again.model)
    model.load_state_dict(read_checkpoint(folder / "model_final.pth")["model"])
    assert do_eval(again, model)["sem_seg"] == {"aAcc": read_metrics(folder)[-1]["sem_seg/aAcc"]}


def test_a_drawn_seed_is_stored_and_kept_on_resume(tiny_config, tmp_path: Path) -> None:
    first = tiny_config("train.seed=-1", "train.max_iter=2")
    train(first)
    seed = load_config(tmp_path / "run" / "config.yaml").train.seed
    assert seed == first.train.seed >= 0
    second = tiny_config("train.seed=-1", "train.max_iter=4")
    setup(second)
    do_train(second, resume=True)
    assert second.train.seed == seed
    assert load_config(tmp_path / "run" / "config.yaml").train.seed == seed
    assert read_checkpoint(tmp_path / "run" / "model_final.pth")["data"]["seed"] == seed


def test_finished_run_is_not_run_again(tiny_config, tmp_path: Path, caplog) -> None:
    train(tiny_config("train.max_iter=2"))
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    cfg = tiny_config("train.max_iter=2")
    setup(cfg)
    assert do_train(cfg, resume=True) == {}
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before


def test_resume_does_not_need_the_file_that_the_run_started_from(tiny_config, tmp_path) -> None:
    train(tiny_config("train.max_iter=1"))
    (tmp_path / "run" / "model_final.pth").rename(tmp_path / "start.pth")
    start = f"train.init_checkpoint={tmp_path / 'start.pth'}"
    train(tiny_config("train.max_iter=2", start))
    (tmp_path / "start.pth").unlink()
    cfg = tiny_config("train.max_iter=3", start)
    setup(cfg)
    assert "sem_seg" in do_train(cfg, resume=True)
    with pytest.raises(InputError, match=r"start\.pth' does not exist"):
        do_train(cfg, resume=False)


@pytest.mark.parametrize(("resume", "text"), [(True, "nothing to resume"), (False, "overwrites")])
def test_start_says_what_it_finds(tiny_config, tmp_path: Path, resume: bool, text: str) -> None:
    if not resume:
        train(tiny_config("train.max_iter=1"))
    cfg = tiny_config("train.max_iter=1")
    setup(cfg)
    do_train(cfg, resume=resume)
    assert text in (tmp_path / "run" / "log.txt").read_text()


def test_failure_in_the_last_iteration_is_not_evaluated(tiny_config, monkeypatch) -> None:
    cfg = tiny_config("train.max_iter=2")
    setup(cfg)
    from vss2.engine.evaluate import Evaluation

    def evaluate(self, model):
        raise AssertionError("a failed run was evaluated")

    monkeypatch.setattr(Evaluation, "__call__", evaluate)
    tiny = type(build_model(cfg))

    def fail(iteration):
        if iteration == 1:
            raise RuntimeError("out of luck")

    monkeypatch.setitem(tiny.forward.__globals__, "_hurt", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        do_train(cfg)


def test_modes_and_random_state_survive_a_failing_evaluation(tiny_config) -> None:
    cfg = tiny_config()
    setup(cfg, save=False)
    model = build_model(cfg).train()
    model.norm.eval()
    cfg.dataloader.evaluator._target_ = "tests.engine.test_train.Failing"
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with pytest.raises(RuntimeError, match="cannot judge"):
        do_eval(cfg, model)
    assert model.training
    assert model.dropout.training
    assert not model.norm.training
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert (np.random.get_state()[1] == state[2]).all()


class Failing:
    def __init__(self, dataset_name, output_dir=None):
        pass

    def reset(self):
        random.random(), np.random.rand(), torch.rand(1)

    def process(self, inputs, outputs):
        raise RuntimeError("cannot judge")


def test_random_state_round_trip() -> None:
    state = RandomState(3).state_dict()
    draws = random.random(), np.random.standard_normal(3), torch.rand(2)
    RandomState(0).load_state_dict(state)
    assert random.random() == draws[0]
    assert (np.random.standard_normal(3) == draws[1]).all()
    assert torch.equal(torch.rand(2), draws[2])
    with preserved_random_state():
        inside = torch.rand(4)
    assert torch.equal(torch.rand(4), inside)


def test_random_state_of_another_world_size_is_left_alone(caplog) -> None:
    state = RandomState(3).state_dict()
    state["ranks"] *= 2
    before = torch.get_rng_state()
    logging.getLogger("vss2").propagate = True
    with caplog.at_level(logging.WARNING, logger="vss2"):
        RandomState(0).load_state_dict(state)
    assert "2 processes, this run has 1" in caplog.text
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_iter=0", r"train.max_iter must be an integer of at least 1, got 0"),
        ("train.eval_period=1.5", r"train.eval_period .* got 1.5"),
        ("train.init_checkpoint=no/such.pth", r"no/such.pth' does not exist"),
        ("dataloader.train.dataset=tiny_trian", r"'tiny_trian'. Did you mean 'tiny_train'"),
        ("model.num_classes=5", r"5 classes .* 'tiny_train' has 3"),
        ("~dataloader.test", r"dataloader.test and dataloader.evaluator belong together"),
        ("~lr_multiplier", r"no 'lr_multiplier'"),
        ("train.device=gpu", r"train.device is 'gpu'"),
        ("train.num_threads=0", r"train.num_threads must be at least 1"),
        ("train.float32_precision=best", r"train.float32_precision is 'best'"),
        ("train.amp.dtype=float16", r"train.amp.dtype is 'float16', expected one of bf16, fp16"),
        ("train.nonfinite=ignore", r"train.nonfinite is 'ignore', expected one of raise, skip"),
        ("train.grad_accum=0", r"train.grad_accum must be an integer of at least 1, got 0"),
        ("train.nonfinite_limit=0", r"train.nonfinite_limit must be"),
        ("train.gather_metric_period=0", r"train.gather_metric_period must be"),
        ("train.clip_grad.max_norm=0", r"train.clip_grad.max_norm must be above 0, got 0"),
        ("train.clip_grad.norm_type=two", r"train.clip_grad.norm_type must be a number"),
        ("train.ema.decay=1.5", r"train.ema.decay must lie between 0 and 1, got 1.5"),
        ("train.deterministic=maybe", r"train.deterministic is 'maybe'"),
    ],
)
def test_mistakes_are_found_before_the_first_iteration(tiny_config, override, message) -> None:
    cfg = tiny_config(override)
    with pytest.raises(InputError, match=message):
        train(cfg)


def test_output_folder_that_cannot_be_made(tiny_config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot make train\.output_dir"):
        setup(tiny_config(f"train.output_dir={tmp_path / 'file' / 'run'}"))


def test_unread_setting_is_named(tiny_config, caplog) -> None:
    from vss2.engine import complete_config

    cfg = tiny_config("+train.max_iters=5")
    logging.getLogger("vss2").propagate = True
    with caplog.at_level(logging.WARNING, logger="vss2"):
        complete_config(cfg)
    assert "train.max_iters. Did you mean 'max_iter'" in caplog.text
