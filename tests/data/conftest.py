"""A tiny data set in VSPW's layout, made in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from vss2.data.image_io import write_image, write_label

MakeVSPW = Callable[..., Path]


def blocks(height: int, width: int, seed: int) -> np.ndarray:
    """A raw label map of 8x8 blocks with ids 0..9 and 255, uint8 (height, width)."""
    rng = np.random.default_rng(seed)
    ids = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255], np.uint8)
    coarse = rng.choice(ids, (-(-height // 8), -(-width // 8)))
    return np.kron(coarse, np.ones((8, 8), np.uint8))[:height, :width].astype(np.uint8)


@pytest.fixture
def make_vspw(tmp_path: Path) -> MakeVSPW:
    """`make(videos, split="train", size=(24, 40), masks=True) -> root`.

    `videos` maps a name to its number of frames. The red channel of a frame is its raw label and
    the green one its position, so that tests can tell what was read (frames are PNG, lossless).
    """

    def make(
        videos: Mapping[str, int],
        split: str = "train",
        size: tuple[int, int] = (24, 40),
        masks: bool = True,
    ) -> Path:
        root = tmp_path / "VSPW_480p"
        root.mkdir(exist_ok=True)
        for number, (name, count) in enumerate(videos.items()):
            (root / "data" / name / "origin").mkdir(parents=True)
            if masks:
                (root / "data" / name / "mask").mkdir()
            for index in range(count):
                label = blocks(*size, seed=100 * number + index)
                image = np.stack(
                    [label, np.full_like(label, index), np.full_like(label, number)], axis=-1
                )
                # Stems with gaps: order comes from the names, the index from the position.
                stem = f"{10 + 3 * index:08d}"
                write_image(root / "data" / name / "origin" / f"{stem}.png", image)
                if masks:
                    write_label(root / "data" / name / "mask" / f"{stem}.png", label)
        (root / f"{split}.txt").write_text("\n".join(videos))  # no newline at the end
        return root

    return make
