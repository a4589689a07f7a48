"""docs/EXTENDING.md, run from top to bottom in an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "EXTENDING.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def steps() -> list[dict[str, Any]]:
    """The page's blocks in order: files, each named in its first line, and commands."""
    found: list[dict[str, Any]] = []
    for language, text in BLOCK.findall(PAGE.read_text()):
        if language == "bash":
            found.append({"run": text.splitlines()})
        else:
            name = text.splitlines()[0].removeprefix("# ")
            assert name.endswith((".py", ".toml")), f"a block without the name of its file: {name}"
            found.append({"file": name, "text": text})
    return found


def test_the_first_method_has_less_than_60_lines() -> None:
    first = []
    for step in steps():
        if "run" in step:
            break
        first.append(step)
    assert [step["file"] for step in first] == [
        "temporal_mean/__init__.py",
        "temporal_mean/model.py",
        "temporal_mean/configs/toy.py",
    ]
    assert sum(len(step["text"].splitlines()) for step in first) < 60


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where the page was followed, and what was printed."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "steps.json").write_text(json.dumps(steps()))
    environment = {
        **os.environ,
        "VSS2_DATASETS": str(folder / "data"),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # files are appended to within a second
    }
    driver = Path(__file__).with_name("walk.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(folder), str(folder / "steps.json")],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return folder, done.stdout


def answer_to(printed: str, command: str) -> str:
    """What the last command that begins so has printed."""
    parts = [part for part in printed.split(">>> ") if part.startswith(command)]
    assert parts, command
    return parts[-1].partition("\n")[2]


def test_a_folder_outside_is_trained_and_evaluated(walk: tuple[Path, str]) -> None:
    folder, _ = walk
    run = folder / "output" / "temporal_mean"
    scores = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    assert "sem_seg/mIoU" in scores[-1]
    assert "model TemporalMean" in (run / "log.txt").read_text()
    assert (run / "inference" / "results.json").is_file()


def test_the_saved_config_finds_the_code(walk: tuple[Path, str]) -> None:
    folder, printed = walk
    saved = yaml.safe_load((folder / "output/temporal_mean/config.yaml").read_text())
    assert saved["import_path"] == [str(folder)]
    assert saved["model"]["_target_"] == "temporal_mean.TemporalMean"
    again = answer_to(printed, "vss2 train --config-file output/temporal_mean/config.yaml")
    first = answer_to(printed, "vss2 train --config-file temporal_mean/configs/toy.py --eval-only")
    scores = [re.search(r"copypaste: (\d.*)", text) for text in (first, again)]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0][1] == scores[1][1]


def test_command_data_and_evaluator(walk: tuple[Path, str]) -> None:
    folder, printed = walk
    help_text = answer_to(printed, "vss2 temporal_mean --help")
    assert "draw  Draw the moving squares below VSS2_DATASETS." in help_text
    assert "drawn: 4 videos for each of train, val" in printed
    assert len(list((folder / "data/squares/val").iterdir())) == 4
    lines = (folder / "output/squares/metrics.json").read_text().splitlines()
    scores = json.loads(lines[-1])
    assert 0 <= scores["flicker/percent"] <= 100
    assert "sem_seg/mIoU" in scores
    assert (folder / "output/squares/inference/results.json").is_file()


def test_checkpoints_of_others(walk: tuple[Path, str]) -> None:
    folder, printed = walk
    report = json.loads((folder / "keys.json").read_text())
    renamed = {key["source"]: key["target"] for key in report["keys"] if key["status"] == "renamed"}
    assert renamed == {"head.weight": "classifier.weight", "head.bias": "classifier.bias"}
    assert report["counts"]["kept"] == 7
    assert (folder / "weights.safetensors").is_file()
    assert "copypaste: " in answer_to(
        printed, "vss2 train --config-file temporal_mean/configs/toy.py --eval-only train.init_ch"
    )


def test_the_installed_package_has_short_names(walk: tuple[Path, str]) -> None:
    folder, printed = walk
    assert (folder / "site/temporal_mean/configs/squares.py").is_file()
    listed = answer_to(printed, "vss2 list projects configs")
    assert "temporal_mean/squares" in listed
    assert "Temporal mean on moving squares" in listed
    row = next(line for line in listed.splitlines() if line.startswith("temporal_mean "))
    assert "Temporal mean" in row
    assert "draw" in row
    last = answer_to(printed, "vss2 train --config-file temporal_mean/squares")
    assert "flicker" in last
