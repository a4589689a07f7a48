"""A run of the miniature plug-in, in this process or in one of its own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from vss2.config import apply_overrides, load_config
from vss2.engine import complete_config

ROOT = Path(__file__).resolve().parents[2]
TINY = Path(__file__).parent / "plugin" / "tinyplug" / "configs" / "tiny.py"


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for name in ("vss2", "fvcore"):  # they write to this test's folder and captured screen
        logging.getLogger(name).handlers.clear()


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[..., DictConfig]:
    """`tiny_config(*overrides)`: the plug-in's config with its output below `tmp_path`."""

    def make(*overrides: str) -> DictConfig:
        cfg = complete_config(load_config(TINY))
        cfg.train.output_dir = str(tmp_path / "run")
        return apply_overrides(cfg, list(overrides))

    return make


@pytest.fixture
def tiny_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`tiny_process(folder, *arguments, **environment)`: the tool in a process of its own."""

    def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config-file", str(TINY)]
        return subprocess.run(
            [*command, f"train.output_dir={folder}", *arguments],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal to the last bit, through dicts and lists."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    else:
        assert a == b, where
