"""The toy world of objects on disk: small videos in the layouts of DAVIS and YouTube-VOS.

The folder `<VSS2_DATASETS>/toy_vos-<hash>` holds `DAVIS/2017/trainval`, `YouTube` (with
`ytvos.csv`, and with the dense masks of `valid` in `valid/Annotations_dense`) and `toy_vos.json`,
the parameters; the hash covers them and the generator's version. Objects that appear later are in
the YouTube-VOS part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.datasets.davis import load_davis
from vss2.data.datasets.generated import make_once
from vss2.data.datasets.roots import datasets_root
from vss2.data.datasets.toy_vos_render import CATEGORIES, UNSEEN, ObjectScene
from vss2.data.datasets.youtube_vos import (
    ANNOTATION_STEP,
    INDEX,
    load_youtube_vos_frames,
    load_youtube_vos_train,
    load_youtube_vos_valid,
)
from vss2.data.datasets.ytvos_index import FrameRange, write_ytvos_index
from vss2.data.image_io import write_label
from vss2.data.vos_palette import DAVIS_PALETTE
from vss2.errors import InputError

GENERATOR_VERSION = 3  # raise it with every change of what a seed draws
SEEN = tuple(name for name in CATEGORIES if name not in UNSEEN)
DENSE = "Annotations_dense"
_JPEG_QUALITY = 92
_PARTS = ("davis_train", "davis_val", "youtube_train", "youtube_valid")
_COUNTS = tuple(f"num_{part}" for part in _PARTS)


@dataclass(frozen=True)
class ToyVOSWorld:
    """Parameters of a toy world of objects; a video does not depend on how many there are.

    Args:
        num_davis_train, num_davis_val, num_youtube_train, num_youtube_valid: videos of each part.
        size: (height, width) of the frames in pixels.
        davis_frames: inclusive range of the lengths of DAVIS's videos.
        youtube_frames: length of YouTube-VOS's videos at full rate; every fifth is annotated.
        seed: other seeds give other worlds.

    Raises:
        InputError: a parameter is out of its range.
    """

    num_davis_train: int = 96
    num_davis_val: int = 10
    num_youtube_train: int = 12
    num_youtube_valid: int = 6
    size: tuple[int, int] = (112, 160)
    davis_frames: tuple[int, int] = (18, 22)
    youtube_frames: int = 36
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.davis_frames
        if min(getattr(self, name) for name in _COUNTS) < 1 or self.seed < 0:
            raise InputError(
                f"toy VOS world: needs one video of each part and a seed >= 0: {self}."
            )
        if min(self.size) < 48:
            raise InputError(f"toy VOS world: frames are at least 48 pixels, got {self.size}.")
        if not 3 <= low <= high or self.youtube_frames < 3 * ANNOTATION_STEP:
            raise InputError(
                "toy VOS world: videos have at least 3 annotated frames, got davis_frames="
                f"{self.davis_frames} and youtube_frames={self.youtube_frames}."
            )

    @property
    def name(self) -> str:
        """Folder name, `toy_vos-<hash of generator version and parameters>`."""
        return f"toy_vos-{hashlib.sha256(self.description().encode()).hexdigest()[:10]}"

    def description(self) -> str:
        """The parameters as JSON text, as stored in `toy_vos.json`."""
        return json.dumps({"version": GENERATOR_VERSION, **asdict(self)}, sort_keys=True)

    def scene(self, part: str, index: int) -> ObjectScene:
        """Video `index` of a part such as "davis_train", ready to be drawn."""
        rng = np.random.default_rng([self.seed, _PARTS.index(part), index])
        categories = SEEN if part.endswith("train") else CATEGORIES
        if part.startswith("davis"):
            low, high = self.davis_frames
            return ObjectScene(self.size, int(rng.integers(low, high + 1)), rng, categories)
        late = tuple(range(ANNOTATION_STEP, self.youtube_frames // 2 + 1, ANNOTATION_STEP))
        return ObjectScene(self.size, self.youtube_frames, rng, categories, late)


def make_toy_vos(
    world: ToyVOSWorld | None = None, progress: Callable[[int], object] | None = None
) -> Path:
    """Make the toy world of objects unless it is there; several processes may ask at once.

    Args:
        world: the parameters (default: those of `toy_davis_train` and the others).
        progress: called with 1 after each video.

    Returns:
        The folder, `<VSS2_DATASETS>/<world.name>`.

    Raises:
        InputError: the folder holds something else, or cannot be written.
    """
    world = world or ToyVOSWorld()
    return make_once(
        datasets_root() / world.name,
        "toy_vos.json",
        world.description(),
        lambda folder: _write_world(world, folder, progress or (lambda _: None)),
    )


def _write_world(world: ToyVOSWorld, folder: Path, progress: Callable[[int], object]) -> None:
    davis = folder / "DAVIS/2017/trainval"
    (davis / "ImageSets/2017").mkdir(parents=True)
    for split in ("train", "val"):
        names = [f"{split}_{k:04d}" for k in range(getattr(world, f"num_davis_{split}"))]
        for k, name in enumerate(names):
            _write_davis(world.scene(f"davis_{split}", k), davis, name)
            progress(1)
        (davis / f"ImageSets/2017/{split}.txt").write_text("".join(f"{n}\n" for n in names))
    youtube = folder / "YouTube"
    for split in ("train", "valid"):
        meta: dict[str, Any] = {}
        for k in range(getattr(world, f"num_youtube_{split}")):
            name = f"{split}{k:04d}"
            meta[name] = _write_youtube(world.scene(f"youtube_{split}", k), youtube, split, name)
            progress(1)
        (youtube / split).mkdir(exist_ok=True)
        (youtube / split / "meta.json").write_text(json.dumps({"videos": meta}, indent=1) + "\n")
    rows = [
        FrameRange(f"train{k:04d}", 0, world.youtube_frames) for k in range(world.num_youtube_train)
    ]
    write_ytvos_index(youtube / INDEX, rows)


def _write_davis(scene: ObjectScene, base: Path, name: str) -> None:
    for t in range(scene.num_frames):
        frame, ids = scene.frame(t)
        _write_frame(base / f"JPEGImages/480p/{name}/{t:05d}.jpg", frame)
        write_label(base / f"Annotations/480p/{name}/{t:05d}.png", ids, DAVIS_PALETTE)


def _write_youtube(scene: ObjectScene, base: Path, split: str, name: str) -> dict[str, Any]:
    """Write one video; returns its entry in meta.json."""
    every = "train_all_frames" if split == "train" else "all_frames/valid_all_frames"
    fifth = "train_480p" if split == "train" else "valid"
    for t in range(scene.num_frames):
        frame, ids = scene.frame(t)
        _write_frame(base / every / f"JPEGImages/{name}/{t:05d}.jpg", frame)
        if t % ANNOTATION_STEP:
            continue
        _write_frame(base / fifth / f"JPEGImages/{name}/{t:05d}.jpg", frame)
        dense = "Annotations" if split == "train" else DENSE
        write_label(base / fifth / dense / name / f"{t:05d}.png", ids, DAVIS_PALETTE)
        new = [k for k, first in enumerate(scene.appears, start=1) if first == t]
        if split == "valid" and new:
            given = np.where(np.isin(ids, new), ids, 0)
            write_label(base / f"valid/Annotations/{name}/{t:05d}.png", given, DAVIS_PALETTE)
    pairs = zip(scene.names, scene.appears, strict=True)
    return {
        "objects": {
            str(k): {
                "category": category,
                "frames": [f"{t:05d}" for t in range(first, scene.num_frames, ANNOTATION_STEP)],
            }
            for k, (category, first) in enumerate(pairs, start=1)
        }
    }


def _write_frame(path: Path, frame: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    _, code = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), quality)
    path.write_bytes(code.tobytes())


def load_toy_vos(name: str, world: ToyVOSWorld | None = None) -> list[dict[str, Any]]:
    """Video dicts of one part of the toy world of objects, which is made if need be.

    Args:
        name: one of "davis_train", "davis_val", "youtube_train", "youtube_valid" (every fifth
            frame), "youtube_valid_all_frames", "youtube_train_all_frames" (without masks).

    Raises:
        InputError: no such part.
    """
    loaders = _loaders()
    if name not in loaders:
        raise InputError(f"The toy world has no part {name!r}, only {', '.join(loaders)}.")
    return loaders[name](make_toy_vos(world))


def _loaders() -> dict[str, Callable[[Path], list[dict[str, Any]]]]:
    return {
        "davis_train": lambda folder: load_davis(folder / "DAVIS", "2017_train"),
        "davis_val": lambda folder: load_davis(folder / "DAVIS", "2017_val"),
        "youtube_train": lambda folder: load_youtube_vos_train(folder / "YouTube"),
        "youtube_train_all_frames": lambda folder: load_youtube_vos_frames(folder / "YouTube"),
        "youtube_valid": lambda folder: load_youtube_vos_valid(folder / "YouTube", False, DENSE),
        "youtube_valid_all_frames": lambda folder: load_youtube_vos_valid(
            folder / "YouTube", True, DENSE
        ),
    }


def register() -> None:
    """Register toy_davis_train, toy_davis_val, toy_youtube_train and the others."""
    folder = ToyVOSWorld().name
    for part in _loaders():
        name = f"toy_{part}"
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, lambda part=part: load_toy_vos(part))
        metadata = MetadataCatalog.get(name)
        metadata.set(folder=folder, note="makes itself at first use")
        if part.startswith("davis"):
            metadata.set(evaluator_type="davis", year=2017)
        else:
            metadata.set(
                evaluator_type="youtube_vos",
                meta_file=f"{folder}/YouTube/valid/meta.json",
                train_meta_file=f"{folder}/YouTube/train/meta.json",
            )
