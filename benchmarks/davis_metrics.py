"""J and F of DAVIS at 480x854: vss2 against a plain script, and two processes against one.

    python benchmarks/davis_metrics.py

The plain script does what the toolkit does, on whole frames: for each object and frame it makes
both contours with shifted copies and dilates them by a disk with OpenCV. Both must give the same
numbers. Objects of two sizes: small ones, as most of DAVIS, and one that fills the frame. The
second comparison reads masks from PNG files, as one does with results on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from interleaved import finish, interleave, parser, result, set_threads

from vss2.data.image_io import read_label, write_label
from vss2.evaluation import score_davis

HEIGHT, WIDTH, FRAMES, RADIUS = 480, 854, 26, 8
SMALL = [(200, 220, 90, 60), (600, 280, 70, 110)]  # centre x, y and half axes
LARGE = [(427, 240, 400, 225)]


def moving(objects: Sequence[tuple[int, int, int, int]], speed: int) -> np.ndarray:
    """Ellipses that move to the right, uint8 (T, H, W)."""
    ids = np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8)
    for t in range(FRAMES):
        for k, (x, y, a, b) in enumerate(objects, 1):
            cv2.ellipse(ids[t], (x + speed * t // 4, y), (a, b), 3 * t, 0, 360, k, cv2.FILLED)
    return ids


def contour(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their right, lower or lower-right neighbour."""
    right, below, corner = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    right[:, :-1] = mask[:, 1:]
    below[:-1] = mask[1:]
    corner[:-1, :-1] = mask[1:, 1:]
    edge = mask ^ right | mask ^ below | mask ^ corner
    edge[-1] = mask[-1] ^ right[-1]
    edge[:, -1] = mask[:, -1] ^ below[:, -1]
    edge[-1, -1] = 0
    return edge


def plain_script(truth: np.ndarray, results: np.ndarray) -> tuple[float, float]:
    """Means of J and F over objects, by the published rules."""
    y, x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]
    disk = (x**2 + y**2 <= RADIUS**2).astype(np.uint8)
    js, fs = [], []
    for k in range(1, int(truth[0].max()) + 1):
        j, f = [], []
        for t in range(1, len(truth) - 1):
            g, s = truth[t] == k, results[t] == k
            union = (g | s).sum()
            j.append((g & s).sum() / union if union else 1.0)
            g_edge, s_edge = contour(g), contour(s)
            g_reach = cv2.dilate(g_edge.astype(np.uint8), disk)
            s_reach = cv2.dilate(s_edge.astype(np.uint8), disk)
            precision = (s_edge * g_reach).sum() / s_edge.sum()
            recall = (g_edge * s_reach).sum() / g_edge.sum()
            f.append(2 * precision * recall / max(precision + recall, 1e-300))
        js.append(np.mean(j))
        fs.append(np.mean(f))
    return float(np.mean(js)), float(np.mean(fs))


class MaskFiles:
    """The masks of a folder, read when they are asked for."""

    def __init__(self, folder: Path):
        self.files = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray:
        return read_label(self.files[index])


def write_sequences(root: Path, count: int, masks: dict[str, np.ndarray]) -> list[tuple]:
    """The same sequence `count` times as PNG files: (name, annotations, results)."""
    sequences = []
    for number in range(count):
        folders = [root / f"{number}_{kind}" for kind in masks]
        for folder, maps in zip(folders, masks.values(), strict=True):
            for t, ids in enumerate(maps):
                write_label(folder / f"{t:05d}.png", ids)
        sequences.append((str(number), *(MaskFiles(folder) for folder in folders)))
    return sequences


def main() -> None:
    args = parser(__doc__.splitlines()[0], rounds=7).parse_args()
    set_threads(1)
    results = []
    for size, objects in (("small objects", SMALL), ("one that fills the frame", LARGE)):
        truth, guess = moving(objects, 8), moving(objects, 5)
        ours, (j, f) = score_davis([("video", truth, guess)]), plain_script(truth, guess)
        assert abs(ours["J-Mean"] - j) < 1e-12, size
        assert abs(ours["F-Mean"] - f) < 1e-12, size
        times = interleave(
            {
                "plain": lambda t=truth, g=guess: plain_script(t, g),
                "vss2": lambda t=truth, g=guess: score_davis([("video", t, g)]),
            },
            args.rounds,
        )
        each = 1000 / (len(objects) * (FRAMES - 2))
        what = f"J and F of {size}, plain / vss2"
        results.append(result(what, times, "plain", "vss2", "2 to 3"))
        taken = {name: f"{each * np.median(values):.2f} ms" for name, values in times.items()}
        print(f"{size}: per object and frame {taken}")
    with tempfile.TemporaryDirectory() as folder:
        masks = {"truth": moving(SMALL, 8), "result": moving(SMALL, 5)}
        sequences = write_sequences(Path(folder), 40, masks)
        times = interleave(
            {
                "one process": lambda: score_davis(sequences),
                "two processes": lambda: score_davis(sequences, num_workers=2),
            },
            args.rounds,
        )
        what = "40 sequences from files, one / two processes"
        results.append(result(what, times, "one process", "two processes", "at least 1.7"))
    finish(results, args.json)


if __name__ == "__main__":
    main()
