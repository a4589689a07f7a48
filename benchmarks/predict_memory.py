"""Does prediction run in constant memory? Peak memory at two frames of a long generated video.

    OMP_NUM_THREADS=1 python benchmarks/predict_memory.py

Every form of output is written, through the same threads as in `vss2 predict`. The peak is that of
the memory in use while frames are predicted, sampled at each of them, so that what loading needs
for a moment hides nothing. Exits with 1 when it grows by more than the limit.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vss2.data.video_io import VideoWriter, open_source
from vss2.inference import ResultWriter, VideoPredictor, run
from vss2.loading import load_model
from vss2.visualization import palette


def make_video(path: Path, count: int, size: tuple[int, int]) -> None:
    """A video of moving noise."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (size[0], size[1], 3), np.uint8)
    with VideoWriter(path, fps=25) as video:
        for k in range(count):
            video.write(np.roll(noise, (k, 2 * k), (0, 1)))


def memory_mb() -> float:
    """Memory in use now; its peak where the system does not tell."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(video: Path, folder: Path, config: str) -> tuple[list[float], float]:
    """Memory in MB at each frame's result, and seconds."""
    model = load_model(config, None, (), "cpu")
    colors = palette(model.num_classes)
    names = [str(k) for k in range(model.num_classes)]
    writer = ResultWriter(folder, names, colors, rle=True, scores=True, side_by_side=True)
    memory: list[float] = []
    began = time.perf_counter()
    run(
        VideoPredictor(model, scores_stride=4),
        open_source(video),
        writer,
        progress=lambda: memory.append(memory_mb()),
    )
    return memory, time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", default="segformer/segformer_toy")
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--early", type=int, default=200, help="compare with the peak up to here")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), help="height width")
    parser.add_argument("--limit", type=float, default=30.0, help="MB")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make is not None:
        make_video(args.make, args.frames, tuple(args.size))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "video.mp4"
        # Made in a process of its own: its memory is not ours.
        command = [sys.executable, __file__, "--make", str(video), "--frames", str(args.frames)]
        subprocess.run([*command, "--size", *map(str, args.size)], check=True)
        memory, seconds = measure(video, Path(folder) / "out", args.config_file)
    early, late = max(memory[: args.early]), max(memory)
    print(f"{len(memory)} frames of {args.size[0]}x{args.size[1]} in {seconds:.0f} s")
    print(f"peak memory at frame {args.early}: {early:.1f} MB")
    print(f"peak memory at frame {len(memory)}: {late:.1f} MB")
    print(f"growth: {late - early:.1f} MB (limit {args.limit:g} MB)")
    return int(late - early > args.limit)


if __name__ == "__main__":
    sys.exit(main())
