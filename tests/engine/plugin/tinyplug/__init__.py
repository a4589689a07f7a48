"""A complete method in miniature, as a third party would write it: model, data, evaluator.

Environment variables make a training run hurt itself, see `faults`.
"""

from __future__ import annotations

import os
import random
import signal
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.d2.evaluation import DatasetEvaluator
from vss2.d2.utils import get_event_storage

from . import faults

CLASSES = ["sky", "road", "tree"]
SIZE = 8
ANSWERED = ("video_id", "frame_index", "label_file")


class TinySegmentor(nn.Module):
    """A convolution, a norm with running statistics and dropout, which draws random numbers."""

    def __init__(self, num_classes: int = 3, width: int = 8, dropout: float = 0.5):
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, batch):
        if not self.training:
            frames = torch.stack([item["frame"] for item in batch])
            labels = self._scores(frames).argmax(1).to(torch.uint8)
            return [
                {"labels": label, **{key: i[key] for key in ANSWERED}}
                for label, i in zip(labels, batch, strict=True)
            ]
        _hurt(get_event_storage().iter)
        frames = torch.cat([sample["frames"] for sample in batch])
        target = torch.cat([sample["sem_seg"] for sample in batch])
        scores = self._scores(frames)
        loss = F.cross_entropy(scores, target, ignore_index=255)
        return {"loss_ce": loss, "loss_size": 1e-4 * scores.square().mean()}

    def _scores(self, frames):
        x = frames.to(self.stem.weight.device).float() / 255 - 0.5
        return self.head(self.dropout(F.relu(self.norm(self.stem(x)))))


_hurt = faults.step
if any(name.startswith("TINY_") for name in os.environ):
    faults.install()


def videos() -> list[dict]:
    """Five videos of four frames; the frames exist only as numbers."""
    return [
        {
            "video_id": f"v{i}",
            "frames": [
                {"file_name": f"v{i}/{t}", "label_file": f"v{i}/{t}", "frame_index": t}
                for t in range(4)
            ],
        }
        for i in range(5)
    ]


def _picture(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    label = rng.integers(0, len(CLASSES), (SIZE, SIZE))
    frame = np.stack([(label == k) * 200 + rng.integers(0, 55, label.shape) for k in range(3)])
    return torch.from_numpy(frame.astype(np.uint8)), torch.from_numpy(label)


class TrainMapper:
    min_frames = 1

    def __call__(self, video, rng):
        frame, label = _picture(rng)
        return {"frames": frame[None], "sem_seg": label[None], "video_id": video["video_id"]}


class TestMapper:
    __test__ = False

    def __call__(self, frame):
        image, label = _picture(np.random.default_rng(frame["frame_index"]))
        return {**frame, "frame": image, "label": label}


class TinyEvaluator(DatasetEvaluator):
    """Pixel accuracy. It draws random numbers, as third parties' evaluators do."""

    def __init__(self, dataset_name: str, output_dir: str | None = None, delay: float = 0.0):
        self.output_dir = output_dir
        self.delay = delay
        self.reset()

    def reset(self):
        self.right = self.total = 0

    def process(self, inputs, outputs):
        random.random(), np.random.rand(), torch.rand(1)
        faults.evaluation()
        time.sleep(self.delay)
        for item, output in zip(inputs, outputs, strict=True):
            self.right += int((item["label"] == output["labels"]).sum())
            self.total += item["label"].numel()

    def evaluate(self):
        if "TINY_SIGINT_IN_EVAL" in os.environ and get_event_storage().iter < 6:
            os.kill(os.getpid(), signal.SIGINT)
        return {"sem_seg": {"aAcc": 100.0 * self.right / max(self.total, 1)}}


for _name in ("tiny_train", "tiny_val"):
    if _name not in DatasetCatalog.list():
        DatasetCatalog.register(_name, videos)
        MetadataCatalog.get(_name).set(stuff_classes=CLASSES, ignore_label=255)
