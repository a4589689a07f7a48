"""Old checkpoints go, the best one stays the best, over any number of resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vss2.checkpoint import read_checkpoint
from vss2.checkpoint_folder import NOT_SAVED_YET
from vss2.engine import build_model, do_train, newest_checkpoint, setup
from vss2.engine.evaluate import Evaluation
from vss2.errors import InputFileError

OPTIONS = (
    "train.checkpointer.period=1",
    "train.eval_period=1",
    "train.best_metric=sem_seg/aAcc",
)


class Stop(Exception):
    """Ends a run as a kill would, with nothing more saved."""


@pytest.fixture
def go(tiny_config, monkeypatch, tmp_path) -> Callable[..., Path]:
    """`go(scores, *overrides, stop=None, resume=True)` trains; score i is that after iteration i.

    `stop` is the iteration in whose step the run breaks off.
    """

    def train(
        scores: list[float], *overrides: str, stop: int | None = None, resume: bool = True
    ) -> Path:
        cfg = tiny_config(*OPTIONS, *overrides)
        setup(cfg)
        number = iter(scores)

        def evaluate(self: Evaluation, model: Any) -> dict[str, Any]:
            return {"sem_seg": {"aAcc": next(number)}}

        def hurt(iteration: int) -> None:
            if iteration == stop:
                raise Stop

        monkeypatch.setattr(Evaluation, "__call__", evaluate)
        tiny = type(build_model(cfg))
        monkeypatch.setitem(tiny.forward.__globals__, "_hurt", hurt)
        if stop is None:
            do_train(cfg, resume)
        else:
            with pytest.raises(Stop):
                do_train(cfg, resume)
        return tmp_path / "run"

    return train


class Log:
    """The run's log, from the last `clear` on."""

    def __init__(self, file: Path):
        self.file = file
        self.begin = 0

    def clear(self) -> None:
        self.begin = len(self.file.read_text())

    @property
    def text(self) -> str:
        return self.file.read_text()[self.begin :]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "run" / "log.txt")


def note(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "best_checkpoint.json").read_text())


def iterations(folder: Path) -> list[int]:
    return sorted(int(p.stem[6:]) for p in folder.glob("model_0*.pth"))


# the best one


def test_a_worse_first_evaluation_after_a_resume_is_not_the_best(go) -> None:
    folder = go([50.0, 40.0], "train.max_iter=4", stop=2)
    best = read_checkpoint(folder / "model_best.pth")
    assert best["iteration"] == 0
    assert (folder / "last_checkpoint").read_text() == "model_0000001.pth"
    go([45.0, 44.0], "train.max_iter=4")
    assert note(folder) == {
        "file": "model_best.pth",
        "metric": "sem_seg/aAcc",
        "best_metric": 50.0,
        "best_iter": 0,
    }
    again = read_checkpoint(folder / "model_best.pth")
    assert all(torch.equal(again["model"][n], best["model"][n]) for n in best["model"])
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


def test_a_better_one_after_a_resume_is(go) -> None:
    folder = go([50.0, 40.0], "train.max_iter=4", stop=2)
    go([60.0, float("nan")], "train.max_iter=4")
    assert (note(folder)["best_metric"], note(folder)["best_iter"]) == (60.0, 2)
    at_2 = read_checkpoint(folder / "model_0000002.pth")["model"]
    best = read_checkpoint(folder / "model_best.pth")["model"]
    assert all(torch.equal(at_2[name], best[name]) for name in at_2)


def test_the_best_is_in_the_checkpoint_without_the_note(go) -> None:
    folder = go([50.0, 40.0], "train.max_iter=4", stop=2)
    state = read_checkpoint(folder / "model_0000001.pth")["trainer"]["hooks"]["BestCheckpoint"]
    assert state == {"metric": "sem_seg/aAcc", "best_metric": 50.0, "best_iter": 0}
    (folder / "best_checkpoint.json").unlink()
    go([45.0, 44.0], "train.max_iter=4")
    assert read_checkpoint(folder / "model_best.pth")["iteration"] == 0


def test_the_note_knows_what_the_checkpoint_cannot(go, log) -> None:
    folder = go([50.0, 70.0], "train.max_iter=4", stop=2)  # the second after its checkpoint
    go([60.0, 44.0], "train.max_iter=4")
    assert (note(folder)["best_metric"], note(folder)["best_iter"]) == (70.0, 1)
    (folder / "best_checkpoint.json").write_text("{broken")
    go([71.0], "train.max_iter=5")
    assert "best_checkpoint.json is damaged and not used" in log.text
    assert note(folder)["best_metric"] == 71.0


def test_without_the_file_the_next_one_is_the_best(go) -> None:
    folder = go([50.0, 40.0], "train.max_iter=4", stop=2)
    (folder / "model_best.pth").unlink()
    go([30.0, 29.0], "train.max_iter=4")
    assert (note(folder)["best_metric"], note(folder)["best_iter"]) == (30.0, 2)


def test_another_metric_or_a_new_run_starts_over(go, log) -> None:
    folder = go([50.0, 40.0], "train.max_iter=4", stop=2)
    go([30.0, 29.0], "train.max_iter=4", "train.best_metric=sem_seg/aAc")
    assert "no sem_seg/aAc in the results" in log.text
    assert "Did you mean 'sem_seg/aAcc'" in log.text
    go([20.0, 19.0], "train.max_iter=2", resume=False)
    assert note(folder)["best_metric"] == 20.0


# old ones


def test_max_to_keep_counts_over_resumes(go) -> None:
    keep = "train.checkpointer.max_to_keep=2"
    folder = go([1.0] * 3, "train.max_iter=8", keep, stop=3)
    assert iterations(folder) == [1, 2]
    go([1.0] * 2, "train.max_iter=8", keep, stop=5)
    assert iterations(folder) == [3, 4]
    (folder / "model_0000099.pth").write_bytes(b"of a later life")
    (folder / "model_notes.pth").write_bytes(b"mine")
    go([1.0] * 3, "train.max_iter=8", keep)
    assert iterations(folder) == [6, 7, 99]
    for name in ("model_final.pth", "model_best.pth", "model_notes.pth"):
        assert (folder / name).is_file()


def test_fewer_to_keep_after_a_resume(go, monkeypatch, log) -> None:
    folder = go([1.0] * 4, "train.max_iter=8", stop=4)
    assert iterations(folder) == [0, 1, 2, 3]
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "model_0000002.pth":
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    go([1.0], "train.max_iter=5", "train.checkpointer.max_to_keep=1")
    assert iterations(folder) == [2, 4]
    assert "cannot delete the old checkpoint" in log.text


# resuming


def test_a_new_run_in_an_old_folder_is_what_a_resume_continues(go, log) -> None:
    folder = go([1.0] * 4, "train.max_iter=4")
    go([], "train.max_iter=4", stop=0, resume=False)
    assert (folder / "last_checkpoint").read_text() == NOT_SAVED_YET
    log.clear()
    go([2.0] * 4, "train.max_iter=4")
    assert "nothing to resume" in log.text
    assert note(folder)["best_metric"] == 2.0


def test_a_cut_newest_checkpoint_costs_its_iterations_only(go, log) -> None:
    folder = go([1.0] * 4, "train.max_iter=6", stop=4)
    newest = folder / "model_0000003.pth"
    newest.write_bytes(newest.read_bytes()[:-1])
    cfg_path = newest_checkpoint_of(folder)
    assert Path(cfg_path).name == "model_0000002.pth"
    log.clear()
    go([1.0] * 3, "train.max_iter=6")
    assert f"resuming from {folder / 'model_0000002.pth'}: iteration 3 of 6" in log.text
    assert "model_0000003.pth" in log.text
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    for path in folder.glob("model_0*.pth"):
        path.unlink()
    (folder / "model_final.pth").write_bytes(b"")
    with pytest.raises(InputFileError, match=r"no checkpoint in .* can be used"):
        go([], "train.max_iter=6")


def newest_checkpoint_of(folder: Path) -> str:
    from vss2.config import load_config

    return newest_checkpoint(load_config(folder / "config.yaml"))


def test_a_finished_run_without_its_final_file_gets_it(go) -> None:
    folder = go([1.0] * 3, "train.max_iter=3")
    final = read_checkpoint(folder / "model_final.pth")
    (folder / "model_final.pth").unlink()
    (folder / "last_checkpoint").write_text("model_0000002.pth")
    go([], "train.max_iter=3")
    assert read_checkpoint(folder / "model_final.pth").keys() == final.keys()
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
