"""Times of several ways of doing one thing, taken in turns, and their ratio.

Turns make ratios hold on a machine that others use too: what disturbs one way disturbs the other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch


def interleave(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of each way in each round, after one call each that does not count.

    Every other round runs in reverse order.
    """
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways) if number % 2 == 0 else list(ways)[::-1]
        for name in names:
            start = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - start)
    return times


def compare(times: dict[str, list[float]], over: str, under: str) -> dict[str, float]:
    """Median, p10 and p90 of `times[over] / times[under]`, round by round."""
    quotients = np.divide(times[over], times[under])
    p10, median, p90 = (float(value) for value in np.percentile(quotients, [10, 50, 90]))
    return {"ratio": median, "p10": p10, "p90": p90, "rounds": len(quotients)}


def set_threads(threads: int) -> None:
    """Threads of PyTorch and OpenCV in this process."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def machine() -> str:
    """Processor and versions in one line."""
    cpu = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return (
        f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, "
        f"torch {torch.__version__}, NumPy {np.__version__}, OpenCV {cv2.__version__}"
    )


def parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """Options that all yardsticks share."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--rounds", type=int, default=rounds, help="default %(default)s")
    result.add_argument("--json", metavar="FILE", help="write the numbers there too")
    return result


def finish(results: list[dict], file: str | None) -> None:
    """Print one line for each result and write them to `file`."""
    print(machine())
    for result in results:
        seconds = ", ".join(f"{name} {value:.3f} s" for name, value in result["median_s"].items())
        print(
            f"{result['what']}: {result['ratio']:.3f} "
            f"(p10 {result['p10']:.3f}, p90 {result['p90']:.3f}, {result['rounds']} rounds; "
            f"wanted {result['wanted']}); medians: {seconds}"
        )
    if file is not None:
        Path(file).write_text(json.dumps({"machine": machine(), "results": results}, indent=2))


def result(what: str, times: dict[str, list[float]], over: str, under: str, wanted: str) -> dict:
    """One line of `finish`."""
    medians = {name: float(np.median(values)) for name, values in times.items()}
    return {"what": what, "wanted": wanted, "median_s": medians} | compare(times, over, under)
