"""The moving average of the weights, and where it is used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vss2.checkpoint import load_weights, read_checkpoint
from vss2.cli.train_net import main
from vss2.engine import do_train, setup
from vss2.engine.ema import WeightAverage
from vss2.errors import InputError

from .conftest import TINY, assert_same, read_metrics


def test_the_average_follows_its_formula() -> None:
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, 0.9)
    average.start()
    expected = 1.0
    for value in (2.0, 5.0, -1.0):
        nn.init.constant_(model.weight, value)
        model.num_batches_tracked += 1
        average.update()
        expected = 0.9 * expected + 0.1 * value
    assert average.state_dict()["weight"].item() == pytest.approx(expected)
    assert average.state_dict()["num_batches_tracked"] == 3
    assert average.state_dict().keys() == model.state_dict().keys()


def test_the_weights_come_back_also_after_an_error() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.5)
    average.start()
    first = model.weight.detach().clone()
    own = first + 1
    model.weight.data.copy_(own)
    parameter = model.weight

    def fail() -> None:
        with average.applied():
            assert torch.equal(model.weight, first)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert model.weight is parameter
    assert torch.equal(model.weight, own)


def test_the_average_of_another_model_is_refused() -> None:
    state = nn.Linear(3, 2).state_dict()
    with pytest.raises(InputError, match="of another model"):
        WeightAverage(nn.Linear(4, 2), 0.5).load_state_dict(state)


def test_a_run_saves_and_evaluates_the_average(tiny_config, tmp_path: Path, capsys) -> None:
    options = ["train.ema.enabled=true", "train.ema.decay=0.8", "train.max_iter=6"]
    cfg = tiny_config(*options, "train.best_metric=sem_seg/aAcc")
    setup(cfg)
    do_train(cfg)
    folder = tmp_path / "run"
    saved = read_checkpoint(folder / "model_final.pth")
    assert not torch.equal(saved["ema"]["stem.weight"], saved["model"]["stem.weight"])

    plain = tiny_config("train.max_iter=6", f"train.output_dir={tmp_path / 'plain'}")
    setup(plain)
    do_train(plain)
    assert_same(read_checkpoint(tmp_path / "plain" / "model_final.pth")["model"], saved["model"])

    from vss2.engine import build_model, do_eval

    model = build_model(cfg)
    report = load_weights(model, folder / "model_final.pth", key="ema", strict=True)
    assert not report.missing
    result = do_eval(cfg, model)["sem_seg"]["aAcc"]
    assert result == read_metrics(folder)[-1]["sem_seg/aAcc"]
    # The best file holds what was evaluated.
    best = read_checkpoint(folder / "model_best.pth")
    if best["iteration"] == 5:
        assert_same(best["model"]["stem.weight"], saved["ema"]["stem.weight"])

    arguments = ["--config-file", str(TINY), f"train.output_dir={folder}", *options]
    assert main([*arguments, "--eval-only", "--resume"]) == 0
    log = (folder / "log.txt").read_text()
    assert "evaluating the averaged weights" in log
    assert f"{result:.4f}" in log.splitlines()[-2] + log.splitlines()[-1]


def test_an_average_that_is_switched_on_late_starts_from_the_restored_weights(
    tiny_config, tmp_path: Path
) -> None:
    cfg = tiny_config("train.max_iter=2")
    setup(cfg)
    do_train(cfg)
    before = read_checkpoint(tmp_path / "run" / "model_final.pth")["model"]["stem.weight"]
    cfg = tiny_config("train.max_iter=3", "train.ema.enabled=true", "train.ema.decay=0.5")
    setup(cfg)
    do_train(cfg, resume=True)
    after = read_checkpoint(tmp_path / "run" / "model_final.pth")
    middle = (before + after["model"]["stem.weight"]) / 2
    assert torch.allclose(after["ema"]["stem.weight"], middle, atol=1e-6)
