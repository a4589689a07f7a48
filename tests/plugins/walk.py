"""Runs docs/EXTENDING.md: `python walk.py FOLDER STEPS.json`.

A step is `{"file": name, "text": ...}`, appended to that file of FOLDER, or `{"run": [command,
...]}`, one after the other in a process of their own. Processes are forked, so that vss2 is
imported once.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import traceback
from functools import partial
from pathlib import Path

# What makes the runs of the page short.
BRIEF = [
    "train.device=cpu",
    "train.num_threads=1",
    "train.tensorboard=False",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "dataloader.train.total_batch_size=2",
]
SITE = "site"


def run(command: str) -> int:
    program, *arguments = shlex.split(command)
    if program == "pip":
        assert arguments == ["install", "."]
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", SITE, "."]
        return subprocess.call([sys.executable, "-m", "pip", "install", *options])
    assert program == "vss2"
    from vss2.cli.main import main

    if arguments[0] == "train":
        overrides = [] if "config.yaml" in command else BRIEF
        if "--eval-only" not in arguments:
            arguments = [a for a in arguments if not a.startswith("train.max_iter")]
            overrides = [*overrides, "train.max_iter=2"]
        arguments += overrides
    return main(arguments)


def in_a_process(commands: list[str]) -> None:
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, commands
        return
    code = 0
    try:
        sys.path.insert(0, str(Path(SITE).resolve()))
        for command in commands:
            print(f">>> {command}", flush=True)
            code = run(command)
            if code:
                break
    except BaseException:  # the parent sees the exit code alone
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    import vss2.data.build
    import vss2.engine
    import vss2.evaluation  # noqa: F401  (all three: imported before the first fork)
    from vss2.data.datasets import toy

    toy.load_toy = partial(toy.load_toy, world=toy.ToyWorld(num_train=2, num_val=1))
    folder, steps = sys.argv[1:]
    content = json.loads(Path(steps).read_text())
    os.chdir(folder)
    for step in content:
        if "run" in step:
            in_a_process(step["run"])
            continue
        file = Path(step["file"])
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as stream:
            stream.write(step["text"])


if __name__ == "__main__":
    main()
