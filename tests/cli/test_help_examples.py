"""The examples in every tool's `--help` work as they are written."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vss2.cli import main as console

ROOT = Path(__file__).resolve().parents[2]
# In an order in which each finds what the ones before it left. Those that are not here need a
# data set or a camera that must be brought.
TOOLS = (("train",), ("convert",), ("data",), ("data", "toy"), ("predict",), ("bench",), ("list",))


def examples(tool: tuple[str, ...]) -> list[str]:
    """The lines of `vss2 <tool> --help` that call vss2, continuation lines joined."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        console.main([*tool, "--help"])
    _, _, epilog = text.getvalue().partition("example")
    joined = re.sub(r"\\\n\s*", "", epilog)
    return re.findall(r"^  (vss2 .*)$", joined, re.MULTILINE)


@pytest.mark.parametrize("tool", [*TOOLS, ("data", "check")], ids=" ".join)
def test_every_help_has_an_example_of_its_own(tool: tuple[str, ...]) -> None:
    assert any(line.startswith(f"vss2 {' '.join(tool)}") for line in examples(tool))


@pytest.mark.soak
def test_examples_run_as_written(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    lines = [line for tool in TOOLS for line in examples(tool)]
    assert len(lines) >= 15
    for line in dict.fromkeys(lines):
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
