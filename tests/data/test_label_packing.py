"""Labels travel from workers as bytes and arrive as they left."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vss2.data import loaders
from vss2.data.build import build_train_loader

VIDEOS = [
    {"video_id": str(v), "frames": [{"label_file": "x.png", "frame_index": 0}]} for v in range(3)
]


class Mapper:
    """Labels drawn below `limit`."""

    def __init__(self, limit: int, dtype: torch.dtype = torch.int64):
        self.limit, self.dtype = limit, dtype

    def __call__(self, video: dict, rng: np.random.Generator) -> dict:
        labels = torch.from_numpy(rng.integers(0, self.limit, (2, 5, 6)))
        return {"sem_seg": labels.to(self.dtype), "video_id": video["video_id"]}


@pytest.mark.parametrize(
    ("limit", "dtype"), [(256, torch.int64), (1000, torch.int64), (200, torch.uint8)]
)
def test_batches_are_the_same_with_workers(limit: int, dtype: torch.dtype) -> None:
    batches = []
    for workers in (0, 1):
        loader = build_train_loader(
            dataset=VIDEOS,
            mapper=Mapper(limit, dtype),
            total_batch_size=2,
            num_workers=workers,
            seed=0,
        )
        batches.append(next(iter(loader)))
    for one, other in zip(*batches, strict=True):
        assert one["video_id"] == other["video_id"]
        assert one["sem_seg"].dtype == other["sem_seg"].dtype == dtype
        assert torch.equal(one["sem_seg"], other["sem_seg"])


def test_only_ids_of_one_byte_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    byte = {"sem_seg": torch.tensor([0, 255])}
    assert loaders._packed(byte) is byte  # not in a worker
    monkeypatch.setattr(loaders, "get_worker_info", lambda: object())
    packed = loaders._packed(byte)
    assert packed["sem_seg"].ids.dtype == torch.uint8
    assert torch.equal(loaders._unpacked(packed)["sem_seg"], byte["sem_seg"])
    for sample in (
        {"sem_seg": torch.tensor([256])},
        {"sem_seg": torch.tensor([-1])},
        {"sem_seg": torch.empty(0, dtype=torch.int64)},
        {"masks": torch.tensor([1])},
        "no dict",
    ):
        assert loaders._packed(sample) is sample
        assert loaders._unpacked(sample) is sample
