"""Training samples, 4 frames 480x853 JPEG to 480x480: vss2 against the published pipeline.

    python benchmarks/training_samples.py

The published pipeline augments on uint8 with arithmetic in float32, normalises to float32 in the
worker and hands float frames over. vss2 hands uint8 over; the model normalises on its device. What
that costs on the CPU is printed beside.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from interleaved import finish, interleave, parser, result, set_threads
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from vss2.config import get_config
from vss2.d2.config import instantiate
from vss2.data.build import build_train_loader
from vss2.data.image_io import write_label
from vss2.inference.benchmark import generate_frames

CLIP, BATCH, CROP = (-9, -6, -3, 0), 2, 480
MEAN, STD = np.array([[123.675, 116.28, 103.53]]), np.array([[58.395, 57.12, 57.375]])


def make_videos(folder: Path, videos: int = 6, frames: int = 14) -> list[dict[str, Any]]:
    """Video dicts of generated frames and masks on disk."""
    made = []
    for number in range(videos):
        origin, mask = folder / f"v{number}" / "origin", folder / f"v{number}" / "mask"
        generate_frames(origin, frames, 480, 853, seed=number)
        for file in origin.iterdir():  # at PIL's default quality, as VSPW's 480p frames are made
            Image.open(file).copy().save(file)
        rng = np.random.default_rng(number)
        ids = rng.integers(0, 125, (9, 16), np.uint8)
        labels = cv2.resize(ids, (853, 480), interpolation=cv2.INTER_NEAREST)
        listed = []
        for index in range(frames):
            name = f"{index:05d}"
            colors = [(i, 255 - i, i) for i in range(256)]
            write_label(mask / f"{name}.png", np.roll(labels, 3 * index, axis=1), colors)
            listed.append(
                {
                    "file_name": str(origin / f"{name}.jpg"),
                    "label_file": str(mask / f"{name}.png"),
                    "frame_index": index,
                }
            )
        made.append({"video_id": f"v{number}", "frames": listed})
    return made


def in_float(image: np.ndarray, gain: float = 1.0, bias: float = 0.0) -> np.ndarray:
    return np.clip(image.astype(np.float32) * gain + bias, 0, 255).astype(np.uint8)


class PublishedDataset(Dataset):
    """Clips by the published steps, each frame on its own through each of them."""

    def __init__(self, videos: list[dict[str, Any]], length: int):
        self.videos, self.length = videos, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        np.random.seed(index)
        images, labels = self.read(self.videos[index % len(self.videos)]["frames"])
        images, labels = self.resize(images, labels)
        images, labels = self.crop(images, labels)
        if np.random.rand() < 0.5:
            images = [cv2.flip(image, 1) for image in images]
            labels = [np.flip(label, axis=1).copy() for label in labels]
        images = [self.normalize(self.distort(image)) for image in images]
        frames = np.zeros((len(CLIP), CROP, CROP, 3), np.float32)
        masks = np.full((len(CLIP), 1, CROP, CROP), 255, np.int64)
        for t, (image, label) in enumerate(zip(images, labels, strict=True)):
            frames[t, : image.shape[0], : image.shape[1]] = image
            masks[t, 0, : label.shape[0], : label.shape[1]] = label
        frames = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
        return torch.from_numpy(frames), torch.from_numpy(masks)

    def read(self, listed: list[dict[str, Any]]) -> tuple[list, list]:
        if np.random.rand() < 0.5:
            listed = listed[::-1]
        target = np.random.randint(9, len(listed))
        images, labels = [], []
        for offset in CLIP:
            frame = listed[target + offset]
            images.append(cv2.imread(frame["file_name"], cv2.IMREAD_COLOR))
            label = np.array(Image.open(frame["label_file"]))
            label[label == 0] = 255
            label = label - 1
            label[label == 254] = 255
            labels.append(label)
        return images, labels

    def resize(self, images: list, labels: list) -> tuple[list, list]:
        ratio = np.random.uniform(0.5, 2.0)
        box = int(853 * ratio), int(480 * ratio)
        height, width = images[0].shape[:2]
        factor = min(max(box) / max(height, width), min(box) / min(height, width))
        size = int(width * factor + 0.5), int(height * factor + 0.5)
        return (
            [cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) for image in images],
            [cv2.resize(label, size, interpolation=cv2.INTER_NEAREST) for label in labels],
        )

    def crop(self, images: list, labels: list) -> tuple[list, list]:
        height, width = labels[-1].shape
        for attempt in range(11):
            top = np.random.randint(0, max(height - CROP, 0) + 1)
            left = np.random.randint(0, max(width - CROP, 0) + 1)
            box = slice(top, top + CROP), slice(left, left + CROP)
            values, counts = np.unique(labels[-1][box], return_counts=True)
            counts = counts[values != 255]
            if attempt == 10 or (len(counts) > 1 and counts.max() / counts.sum() < 0.75):
                break
        return [image[box] for image in images], [label[box] for label in labels]

    def distort(self, image: np.ndarray) -> np.ndarray:
        if np.random.randint(2):
            image = in_float(image, bias=np.random.uniform(-32, 32))
        first = np.random.randint(2)
        if first and np.random.randint(2):
            image = in_float(image, gain=np.random.uniform(0.5, 1.5))
        if np.random.randint(2):
            hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            hsv[..., 1] = in_float(hsv[..., 1], gain=np.random.uniform(0.5, 1.5))
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        if np.random.randint(2):
            hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            hsv[..., 0] = (hsv[..., 0].astype(int) + np.random.randint(-18, 18)) % 180
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        if not first and np.random.randint(2):
            image = in_float(image, gain=np.random.uniform(0.5, 1.5))
        return image

    def normalize(self, image: np.ndarray) -> np.ndarray:
        image = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_BGR2RGB)
        image = cv2.subtract(image, MEAN)
        return cv2.multiply(image, 1 / STD)


def one_thread(worker: int = 0) -> None:
    set_threads(1)


def published(videos: list[dict[str, Any]], batches: int, workers: int) -> int:
    """Consume `batches` batches of the published pipeline."""
    loader = DataLoader(
        PublishedDataset(videos, batches * BATCH), BATCH, num_workers=workers,
        worker_init_fn=one_thread,
    )  # fmt: skip
    return sum(len(frames) for frames, _ in loader)


def ours(videos: list[dict[str, Any]], mapper: Any, batches: int, workers: int) -> int:
    """Consume `batches` batches of vss2's loader, as training does."""
    loader = build_train_loader(
        dataset=videos, mapper=mapper, total_batch_size=BATCH, num_workers=workers, seed=0
    )
    total = 0
    for samples in itertools.islice(loader, batches):
        frames = torch.stack([sample["frames"] for sample in samples])
        torch.stack([sample["sem_seg"] for sample in samples])
        total += len(frames)
    return total


def normalize(frames: torch.Tensor) -> torch.Tensor:
    """What the model does with a batch on its device."""
    mean, std = (torch.tensor(value).float().view(3, 1, 1) for value in (MEAN, STD))
    return (frames.float() - mean) / std


def main() -> None:
    options = parser(__doc__.splitlines()[0], rounds=7)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--batches", type=int, default=60, help="of 2 samples, in each round")
    args = options.parse_args()
    one_thread()
    with tempfile.TemporaryDirectory() as folder:
        videos = make_videos(Path(folder))
        mapper = instantiate(get_config("common/data/vspw.py").dataloader.train.mapper)
        times = interleave(
            {
                "published": lambda: published(videos, args.batches, args.workers),
                "vss2": lambda: ours(videos, mapper, args.batches, args.workers),
            },
            args.rounds,
        )
    batch = torch.zeros(BATCH, len(CLIP), 3, CROP, CROP, dtype=torch.uint8)
    model_side = interleave({"normalize": lambda: normalize(batch)}, 9)["normalize"]
    print(f"normalising {BATCH} samples on the CPU: {np.median(model_side):.4f} s")
    what = f"{args.batches * BATCH} training samples, {args.workers} workers, published / vss2"
    finish([result(what, times, "published", "vss2", "at least 1.3")], args.json)


if __name__ == "__main__":
    main()
