"""Videos of unequal length with labels on disk, for the real evaluator.

SCORED_LABELS=<folder>    where the label files are, see `write_labels`
SCORED_KILL=<iteration>  kills rank 1 there, unless its processes were started again
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np

from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.d2.utils import comm, get_event_storage
from vss2.data.image_io import write_label

from . import CLASSES, SIZE, TinySegmentor

LENGTHS = (20, 18, 3, 17, 9)


class KillableSegmentor(TinySegmentor):
    def forward(self, batch):
        if self.training and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
            here = str(get_event_storage().iter), comm.get_rank()
            if here == (os.environ.get("SCORED_KILL"), 1):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(batch)


def write_labels(folder: Path) -> None:
    for video in scored_videos(folder):
        number = int(video["video_id"].removeprefix("s"))
        for frame in video["frames"]:
            rng = np.random.default_rng([number, frame["frame_index"]])
            labels = rng.integers(0, len(CLASSES), (SIZE, SIZE)).astype(np.uint8)
            Path(frame["label_file"]).parent.mkdir(parents=True, exist_ok=True)
            write_label(frame["label_file"], labels)


def scored_videos(folder: Path | None = None) -> list[dict]:
    folder = folder or Path(os.environ["SCORED_LABELS"])
    return [
        {
            "video_id": f"s{i}",
            "frames": [
                {
                    "file_name": f"s{i}/{t}",
                    "label_file": str(folder / f"s{i}" / f"{t:03d}.png"),
                    "frame_index": t,
                }
                for t in range(length)
            ],
        }
        for i, length in enumerate(LENGTHS)
    ]


if "tiny_scored" not in DatasetCatalog.list():
    DatasetCatalog.register("tiny_scored", scored_videos)
    MetadataCatalog.get("tiny_scored").set(stuff_classes=CLASSES, ignore_label=255)
