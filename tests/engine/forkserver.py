"""Runs of the training tool in processes that are forked off one that has done the imports.

Started as a script; reads one JSON line per run, {"argv", "environment", "output": file}, and
answers with the exit code, negative for a signal. A fork saves the seconds that a start takes and
dies by SIGKILL like any process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class ForkServer:
    """Context; `run` is the parent's side."""

    def __enter__(self) -> ForkServer:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=30)

    def run(self, argv: list[str], output: Path, **environment: str) -> int:
        assert self.process.stdin
        assert self.process.stdout
        order = {"argv": argv, "output": str(output), "environment": environment}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


def _serve() -> None:
    import cv2  # noqa: F401
    import torch._dynamo  # noqa: F401 (the first optimizer imports it)

    import vss2.cli.train_net
    import vss2.data.build
    import vss2.engine  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _child(json.loads(line))
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


def _child(order: dict[str, Any]) -> None:
    from vss2.cli.train_net import main

    code = 1
    try:
        os.environ.update(order["environment"])
        file = os.open(order["output"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdin = open(os.devnull)  # noqa: SIM115
        sys.argv = ["train_net", *order["argv"]]
        code = main(order["argv"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
