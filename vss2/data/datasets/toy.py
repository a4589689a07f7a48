"""The toy world on disk: small videos with exact labels in VSPW's layout, made on demand.

The folder `<VSS2_DATASETS>/toy_world-<hash>` holds `data/<video>/{origin,mask}`, `train.txt`,
`val.txt`, `label_num_dic_final.json`, and beside VSPW's files `toy_world.json` (the parameters) and
`damaged_<split>.json` (`{video: [positions of damaged frames]}`). The hash covers the generator's
version and every parameter, so that a folder never holds anything but what its name says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.datasets.generated import make_once
from vss2.data.datasets.roots import datasets_root
from vss2.data.datasets.toy_render import CLASSES, RAW_OTHERS, RAW_VOID, Scene
from vss2.data.datasets.vspw import load_vspw
from vss2.data.image_io import write_label
from vss2.data.labels import IGNORE_LABEL
from vss2.errors import InputError, InputFileError, did_you_mean

GENERATOR_VERSION = 2  # raise it with every change of what a seed draws
SPLITS = ("train", "val")
STUFF_CLASSES = list(CLASSES)
STUFF_COLORS = [
    (126, 182, 240),  # sky
    (176, 118, 98),  # wall
    (128, 190, 70),  # grass
    (196, 160, 98),  # ground
    (40, 110, 190),  # water
    (20, 110, 60),  # bush
    (226, 36, 46),  # ball
    (240, 130, 30),  # box
    (250, 222, 40),  # star
    (136, 70, 200),  # ring
    (244, 96, 176),  # cross
    (40, 214, 190),  # gem
]
_JPEG_QUALITY = 92
_SPLIT_KEYS = {"train": 0, "val": 1}


@dataclass(frozen=True)
class ToyWorld:
    """Parameters of a toy world; video `k` of a split does not depend on `num_train`, `num_val`.

    Args:
        num_train, num_val: number of videos of each split.
        size: (height, width) of the frames in pixels.
        train_frames, val_frames: inclusive range of the videos' lengths. Consistency over 16
            frames is defined for videos of at least 17, hence the longer validation videos.
        seed: other seeds give other worlds.

    Raises:
        InputError: a parameter is out of its range.
    """

    num_train: int = 48
    num_val: int = 8
    size: tuple[int, int] = (96, 128)
    train_frames: tuple[int, int] = (16, 20)
    val_frames: tuple[int, int] = (18, 20)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("size", "train_frames", "val_frames"):
            value = tuple(int(x) for x in getattr(self, name))
            if len(value) != 2:
                raise InputError(f"toy world: {name} takes two whole numbers, got {value}.")
            object.__setattr__(self, name, value)
        for name in ("num_train", "num_val"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"toy world: {name} must be at least 1, got {getattr(self, name)}."
                )
        if self.seed < 0:
            raise InputError(f"toy world: seed must not be negative, got {self.seed}.")
        if min(self.size) < 32:
            raise InputError(f"toy world: frames must be at least 32 pixels, got size={self.size}.")
        for name in ("train_frames", "val_frames"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise InputError(
                    f"toy world: {name} must be (shortest, longest), got {(low, high)}."
                )

    @property
    def name(self) -> str:
        """Folder name, `toy_world-<hash of generator version and parameters>`."""
        return f"toy_world-{hashlib.sha256(self.description().encode()).hexdigest()[:10]}"

    def description(self) -> str:
        """The parameters as JSON text, as stored in `toy_world.json`."""
        return json.dumps({"version": GENERATOR_VERSION, **asdict(self)}, sort_keys=True)

    def videos(self, split: str) -> list[str]:
        """Names of the split's videos, in order."""
        count = self.num_train if split == "train" else self.num_val
        return [f"{split}_{k:04d}" for k in range(count)]

    def scene(self, split: str, index: int) -> Scene:
        """Video `index` of a split, ready to be drawn."""
        rng = np.random.default_rng([self.seed, _SPLIT_KEYS[split], index])
        low, high = self.train_frames if split == "train" else self.val_frames
        return Scene(self.size, int(rng.integers(low, high + 1)), rng)


def make_toy_world(
    world: ToyWorld | None = None,
    folder: str | Path | None = None,
    progress: Callable[[int], object] | None = None,
) -> Path:
    """Make the toy world unless it is there; several processes may ask at once.

    Args:
        world: the parameters (default: those of `toy_train` and `toy_val`).
        folder: where to make it; default `<VSS2_DATASETS>/<world.name>`.
        progress: called with 1 after each video.

    Returns:
        The folder.

    Raises:
        InputError: the folder holds something else, or cannot be written.
    """
    world = world or ToyWorld()
    if folder is None:
        folder = datasets_root() / world.name
    return make_once(
        Path(folder),
        "toy_world.json",
        world.description(),
        lambda scratch: _write_world(world, scratch, progress),
    )


def _write_world(world: ToyWorld, folder: Path, progress: Callable[[int], object] | None) -> None:
    colours = _mask_colours()
    for split in SPLITS:
        names = world.videos(split)
        damaged = {}
        for k, name in enumerate(names):
            scene = world.scene(split, k)
            damaged[name] = scene.damaged
            _write_video(scene, folder / "data" / name, colours)
            if progress is not None:
                progress(1)
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        (folder / f"damaged_{split}.json").write_text(json.dumps(damaged, indent=1) + "\n")
    raw_ids = {"others": str(RAW_OTHERS)}
    raw_ids.update({name: str(k + 1) for k, name in enumerate(CLASSES)})
    (folder / "label_num_dic_final.json").write_text(json.dumps(raw_ids, indent=1) + "\n")


def _write_video(scene: Scene, folder: Path, colours: list[tuple[int, int, int]]) -> None:
    for part in ("origin", "mask"):
        (folder / part).mkdir(parents=True)
    for t in range(scene.num_frames):
        frame, label = scene.frame(t)
        quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        _, code = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), quality)
        (folder / "origin" / f"{t:05d}.jpg").write_bytes(code.tobytes())
        write_label(folder / "mask" / f"{t:05d}.png", label, colours)


def _mask_colours() -> list[tuple[int, int, int]]:
    """Palette of the masks, by raw id: others black, void white."""
    colours = [(0, 0, 0)] * 256
    colours[1 : 1 + len(STUFF_COLORS)] = STUFF_COLORS
    colours[RAW_VOID] = (255, 255, 255)
    return colours


def load_toy(split: str, world: ToyWorld | None = None) -> list[dict]:
    """Video dicts of a split ("train" or "val") of the toy world, which is made if need be."""
    return load_vspw(make_toy_world(world), _known(split))


def damaged_frames(split: str, folder: str | Path | None = None) -> dict[str, list[int]]:
    """`{video: positions of its damaged frames}` of a split of the toy world.

    Args:
        split: "train" or "val".
        folder: where the toy world is; default that of `toy_train` and `toy_val`.
    """
    path = Path(folder or make_toy_world()) / f"damaged_{_known(split)}.json"
    if not path.is_file():
        raise InputFileError(f"{path} does not exist: {path.parent} is no toy world.")
    return json.loads(path.read_text())


def _known(split: str) -> str:
    if split not in SPLITS:
        raise InputError(
            f"The toy world has no split {split!r}, only 'train' and 'val'."
            f"{did_you_mean(split, SPLITS)}"
        )
    return split


def register() -> None:
    """Register `toy_train` and `toy_val`; calling it again changes nothing."""
    for split in SPLITS:
        name = f"toy_{split}"
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, lambda split=split: load_toy(split))
        MetadataCatalog.get(name).set(
            stuff_classes=STUFF_CLASSES,
            stuff_colors=STUFF_COLORS,
            ignore_label=IGNORE_LABEL,
            evaluator_type="vss",
            folder=ToyWorld().name,
            note="makes itself at first use",
        )
