"""Many kills at random moments; minutes long, run by `make soak`."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from vss2.checkpoint_io import check_archive

from .conftest import ROOT, TINY, assert_same

KILLS = int(os.environ.get("VSS2_SOAK_KILLS", 100))
SEED = int(os.environ.get("VSS2_SOAK_SEED", random.SystemRandom().randrange(10**6)))
LIMIT = 30 * 60  # seconds for 100 kills

STEP = 0.005  # a step lasts at least so long,
LONGEST = 0.1  # a process trains no longer than that,
MAX_ITER = KILLS * int(LONGEST / STEP)  # so the run cannot end before the kills do
FILES = ("model_0*.pth", "last_checkpoint", "model_best.pth", "best_checkpoint.json", "last_eval*")
POINTS = ("open", "write", "sync", "rename", "renamed")
ROW = "{:>4}  {:>7}  {:<36}  {:>9}  {:<30}  {:<19}  {:>5}"


def command(folder: Path, *arguments: str) -> list[str]:
    tool = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file", str(TINY)]
    options = (f"train.max_iter={MAX_ITER}", "train.checkpointer.max_to_keep=4")
    best = "train.best_metric=sem_seg/aAcc"
    return [*tool, f"train.output_dir={folder}", *options, best, *arguments]


def start(folder: Path, log: Path, *arguments: str, **faults: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command(folder, *arguments),
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **faults},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def plan(rng: random.Random, start_up: float) -> tuple[str, dict[str, str], float | None]:
    """What kills the next process: a name for it, its environment, seconds to a kill from here."""
    inside = {"TINY_STEP": str(STEP), "TINY_KILL_IN": f"{rng.uniform(0, LONGEST):.4f}"}
    kind = rng.choice(("moment", "save", "save", "outside"))
    if kind == "moment":
        return f"{inside['TINY_KILL_IN']} s into training", inside, None
    inside["TINY_KILL_IN"] = str(LONGEST)
    if kind == "outside":
        seconds = rng.uniform(0, 1.2 * start_up)
        return f"{seconds:.2f} s after its start", inside, seconds
    point, file, skips = rng.choice(POINTS), rng.choice(FILES), rng.randrange(4)
    fault = {"TINY_FAULT": f"{point}:{file}:kill", "TINY_FAULT_SKIPS": str(skips)}
    return f"{point} {file}, time {skips + 1}", {**inside, **fault}, None


def killed(folder: Path, log: Path, trace: Path, planned: Any, workers: int) -> list[str]:
    """Run until it is killed; the columns of the table that tell of it."""
    what, faults, seconds = planned
    trace.write_text("")
    begin = time.monotonic()
    process = start(
        folder,
        log,
        "--resume",
        f"dataloader.train.num_workers={workers}",
        TINY_TRACE=str(trace),
        **faults,
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()  # SIGKILL
    code = process.wait()
    text = log.read_text(errors="replace")
    assert code == -9, f"ended by {code}, not by the kill:\n{text[-3000:]}"
    lines = trace.read_text().splitlines()
    steps = [line.split()[0] for line in lines if line.endswith(" training")]
    resumed = re.search(r"resuming from .*/(\S+): iteration", text)
    return [
        str(workers),
        what,
        steps[-1] if steps else "-",
        lines[-1] if lines else "starting up",
        resumed[1] if resumed else "-",
        f"{time.monotonic() - begin:.1f}",
    ]


@pytest.mark.soak
def test_random_kills_end_in_the_same_bits(tmp_path: Path, capsys) -> None:
    rng = random.Random(SEED)
    whole, chain, log = tmp_path / "whole", tmp_path / "chain", tmp_path / "log"
    begin = time.monotonic()
    # How long a start takes is known after one that dies in its first step.
    first = start(tmp_path / "first", log, TINY_KILL_IN="0", TINY_STEP="1")
    assert first.wait(LIMIT) == -9, log.read_text()
    start_up = time.monotonic() - begin
    assert start(whole, log).wait(LIMIT) == 0, log.read_text()
    with capsys.disabled():
        print(f"\n{KILLS} kills with VSS2_SOAK_SEED={SEED}, {MAX_ITER} iterations in all")
        print(
            ROW.format("kill", "workers", "planned", "iteration", "killed at", "resumed from", "s")
        )
    for number in range(1, KILLS + 1):
        row = killed(chain, log, tmp_path / "trace", plan(rng, start_up), rng.choice((0, 2)))
        with capsys.disabled():
            print(ROW.format(number, *row), flush=True)
        whole_files(chain)
    assert start(chain, log, "--resume").wait(LIMIT) == 0, log.read_text()
    seconds = time.monotonic() - begin
    with capsys.disabled():
        print(f"{KILLS} kills and the rest of the run in {seconds / 60:.1f} minutes")
    for name in ("model_final.pth", "model_best.pth"):
        assert_same(torch.load(whole / name), torch.load(chain / name))
    notes = [json.loads((f / "best_checkpoint.json").read_text()) for f in (whole, chain)]
    assert notes[0] == notes[1]
    assert seconds < max(LIMIT * KILLS / 100, 120)


def whole_files(folder: Path) -> None:
    """At any moment a file under its final name is whole, and so is the tagged one."""
    for file in folder.glob("*.pth"):
        check_archive(file, required=True)
    tag = folder / "last_checkpoint"
    assert not tag.exists() or (folder / tag.read_text()).is_file()
