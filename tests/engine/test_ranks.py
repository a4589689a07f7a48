"""Several processes: the same bits however they are started, agreement, and exact scores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vss2.config import apply_overrides, load_config
from vss2.engine import build_model, complete_config, do_eval, launch, setup

from . import rank_checks
from .conftest import ROOT, TINY, assert_same, read_metrics

RANKS = TINY.with_name("ranks.py")
TOOL = [str(ROOT / "tools" / "train_net.py"), "--config-file", str(RANKS)]
TIMEOUT = 240


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "0"}
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **quiet, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    load_config(RANKS)  # puts the plug-in on the import path
    from tinyplug.scored import write_labels

    write_labels(folder)
    return folder


def scores(folder: Path) -> list[dict[str, Any]]:
    rows = [row for row in read_metrics(folder) if "sem_seg/mIoU" in row]
    return [{k: v for k, v in row.items() if k.startswith("sem_seg")} for row in rows]


def test_torchrun_with_a_failure_and_spawn_end_alike_and_score_as_one_process(
    tmp_path: Path, labels: Path, monkeypatch
) -> None:
    spawned, elastic = tmp_path / "spawned", tmp_path / "elastic"
    found = run(*TOOL, "--num-gpus", "2", f"train.output_dir={spawned}", SCORED_LABELS=str(labels))
    assert found.returncode == 0, found.stderr
    assert "device cpu, 2 processes" in found.stdout
    assert "1 batch norms use the statistics of their own process" in found.stdout

    options = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    found = run(
        *("-m", "torch.distributed.run", *options, "--monitor-interval", "0.2", *TOOL),
        *("--num-gpus", "4", f"train.output_dir={elastic}"),
        SCORED_LABELS=str(labels),
        SCORED_KILL="3",
    )
    assert found.returncode == 0, found.stderr
    assert "started by torchrun: --num-gpus and --num-machines are not used" in found.stderr
    assert "started again by torchrun after a failure: resuming" in found.stderr
    log = (elastic / "log.txt").read_text()
    assert log.count("2 processes") == 2
    assert "iteration 2 of 6" in log

    a, b = (torch.load(folder / "model_final.pth") for folder in (spawned, elastic))
    assert_same(a, b)
    assert a["data"]["batches"] == 12
    states = [rank["torch"] for rank in a["random"]["ranks"]]
    assert len(states) == 2
    assert not torch.equal(*states)  # ranks do not share their random numbers

    assert len(scores(spawned)) == 2
    assert scores(elastic)[-1] == pytest.approx(scores(spawned)[-1], rel=0, abs=0, nan_ok=True)
    monkeypatch.setenv("SCORED_LABELS", str(labels))
    cfg = complete_config(load_config(RANKS))
    apply_overrides(cfg, [f"train.output_dir={tmp_path / 'one'}"])
    setup(cfg, save=False)
    model = build_model(cfg)
    model.load_state_dict(a["model"])
    alone = do_eval(cfg, model)["sem_seg"]
    assert {f"sem_seg/{k}": v for k, v in alone.items()} == pytest.approx(
        scores(spawned)[-1], rel=0, abs=0, nan_ok=True
    )
    assert alone["VC8"] > 0


def test_two_processes_agree(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launch(rank_checks.main, (str(tmp_path),), num_gpus=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pth") for rank in range(2))
    assert (first["world"], second["world"]) == ((0, 2, 0), (1, 2, 1))
    # Non-finite on rank 1 only: both stop at the same iteration, and say where and what.
    assert first["raised"] == second["raised"]
    assert first["raised"][0] == 1
    assert "iteration 1: rank 1: total_loss=inf on clips [r1b1 frames 1]" in first["raised"][1]
    assert first["skipped"][0] == second["skipped"][0] == 1
    assert torch.equal(first["skipped"][1], second["skipped"][1])
    # Gradient of batch b: (b + rank) * [1, 2]; batches 0, 2, 3 count.
    expected = 1 - 0.01 * (0.5 + 2.5 + 3.5) * torch.tensor([1.0, 2.0])
    assert torch.allclose(first["skipped"][1], expected)
    # Three batches an iteration, one exchange.
    assert first["exchanges"] == second["exchanges"] == 2
    assert torch.equal(first["accumulated"], second["accumulated"])
    expected = 1 - 0.01 * (1.5 + 4.5) * torch.tensor([1.0, 2.0])
    assert torch.allclose(first["accumulated"], expected)
    assert first["mean"][0] == pytest.approx(1.5 * 3)
    for rank in (first, second):
        assert rank["norms"] == ["_BatchNorm", "_ConvNd", "_BatchNorm"]
        assert rank["same parameters"]
        assert rank["restored"]
        assert_same(rank["buffers"][1:], first["buffers"][1:])
    assert not torch.equal(first["buffers"][0], second["buffers"][0])
    assert torch.equal(first["buffers"][0], second["buffers"][2])
    assert not torch.distributed.is_initialized()
    if sys.platform == "linux" and torch.__version__ >= "2.11":  # since then threads have names
        for rank in range(2):
            assert "gloo" in (tmp_path / f"threads{rank}.txt").read_text()
            # One that is left when the interpreter ends may abort the process.
            assert "gloo" not in (tmp_path / f"threads_at_exit{rank}.txt").read_text()
