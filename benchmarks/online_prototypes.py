"""CFFM++ with prototypes from the stream against prototypes of whole videos, on the toy world.

    OMP_NUM_THREADS=1 python benchmarks/online_prototypes.py --cffm output/cffm_toy/model_final.pth

For each seed: cluster all videos offline, train CFFM++ on that, and score it on `toy_val` twice,
with the offline prototypes and with those that a session makes of the frames so far. Inertia is
that of the points that are clustered offline, ten frames of a video, mean over the videos: for
the online prototypes as they are after the last frame. The seed is that of k-means, of the training
and of the online sample. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from uses_time import LOADERS, QUIET, ROOT, predictions, scored

import vss2
from vss2.d2.config import instantiate
from vss2.data.build import get_video_dicts
from vss2.projects.cffm.kmeans import assign
from vss2.projects.cffm.online import OnlinePrototypes
from vss2.projects.cffm.prototype_tool import main as cluster
from vss2.projects.cffm.prototype_tool import prototype_frames, read_frames, video_points
from vss2.projects.cffm.prototypes import PrototypeStore

CAPACITIES = (4096, 2048)


def train(cffm: Path, folder: Path, seed: int) -> Path:
    """Offline prototypes and a CFFM++ on top of them; its checkpoint."""
    prototypes, weights = folder / "prototypes", ["--weights", str(cffm), "--seed", str(seed)]
    cluster(["--config-file", "cffm/cffm_toy", *weights, "--output", str(prototypes)])
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--resume"]
    command += ["--config-file", "cffm/cffmpp_toy", f"train.seed={seed}"]
    command += [f"train.output_dir={folder}", f"train.init_checkpoint={cffm}"]
    command += [f"model.prototypes={prototypes}", *QUIET, *LOADERS]
    with (folder / "screen.txt").open("a") as screen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, stdout=screen, stderr=screen, check=True)
    return folder / "model_final.pth"


def stream_online(model: Any, seed: int, capacity: int) -> None:
    """Let the model's sessions make their prototypes with this seed and capacity."""

    def new_session() -> Any:
        session = type(model).new_session(model, prototypes="online")
        session._prototypes = OnlinePrototypes(seed=seed, capacity=capacity)
        return session

    model.store, model.new_session = None, new_session


@torch.no_grad()
def inertias(model: Any, store: PrototypeStore, seed: int) -> dict[str, float]:
    """Mean squared distance of the offline points to the prototypes, offline and online."""
    found: dict[str, list[float]] = {}
    resize = instantiate(model.cfg.dataloader.test.mapper).resize
    for video in get_video_dicts("toy_val"):
        frames = read_frames(video, range(len(video["frames"])), resize)
        tokens = video_points(model, frames).unflatten(0, (len(frames), -1))
        points = tokens[prototype_frames(len(tokens))].flatten(0, 1)
        centers = {"offline": store[video["video_id"]]}
        for capacity in CAPACITIES:
            online = OnlinePrototypes(seed=seed, capacity=capacity)
            centers[f"online {capacity}"] = [online.update(frame) for frame in tokens][-1]
        for name, value in centers.items():
            distance = (points - value[assign(points, value)]).square().sum(1).mean()
            found.setdefault(name, []).append(float(distance))
    return {name: float(np.mean(values)) for name, values in found.items()}


def measure(cffm: Path, folder: Path, seed: int) -> dict[str, float]:
    """Ratios of inertia, and mIoU in %."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = train(cffm, folder, seed)
    options = [f"model.prototypes={folder / 'prototypes'}", *LOADERS]
    model = vss2.load("cffm/cffmpp_toy", str(checkpoint), options, "cpu")
    loader = instantiate(model.cfg.dataloader.test)
    inertia = inertias(model, model.store, seed)
    row = {f"inertia, {n} / offline": v / inertia["offline"] for n, v in inertia.items()}
    del row["inertia, offline / offline"]
    row["mIoU, offline"] = scored(predictions(model, loader, False), model.num_classes)["mIoU"]
    for capacity in CAPACITIES:
        stream_online(model, seed, capacity)
        found = predictions(model, loader, False)
        row[f"mIoU, online {capacity}"] = scored(found, model.num_classes)["mIoU"]
    return row


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--cffm", type=Path, required=True, help="checkpoint of cffm/cffm_toy")
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--output", type=Path, default=Path("output/online_prototypes"))
    args = options.parse_args()
    torch.set_num_threads(1)
    cffm = args.cffm.resolve()
    rows = [measure(cffm, (args.output / f"seed{s}").resolve(), s) for s in args.seeds]
    print(f"| | mean | {' | '.join(f'seed {seed}' for seed in args.seeds)} |")
    print("|---|---" + "|---" * len(rows) + "|")
    for name in rows[0]:
        values = [row[name] for row in rows]
        cells = " | ".join(f"{value:.3f}" for value in [float(np.mean(values)), *values])
        print(f"| {name} | {cells} |")


if __name__ == "__main__":
    main()
