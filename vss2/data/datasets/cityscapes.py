"""Cityscapes video (Cordts et al., CVPR 2016): 30-frame snippets with one labelled frame each.

cityscapes/leftImg8bit_sequence/<split>/<city>/<city>_<seq>_<frame>_leftImg8bit.png
cityscapes/gtFine/<split>/<city>/<city>_<seq>_<frame>_gtFine_labelTrainIds.png  or  _labelIds.png

In some cities one sequence number spans many snippets, so a snippet is found by its label: the
labelled frame is its twentieth, and its frame numbers are consecutive.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.datasets.roots import datasets_root
from vss2.data.labels import IGNORE_LABEL
from vss2.data.problems import problem
from vss2.errors import InputError, InputFileError, did_you_mean

FOLDER = "cityscapes"
SPLITS = ("train", "val")
SNIPPET_FRAMES = 30
LABELLED_INDEX = 19

# Train id = index: name and (r, g, b).
CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("pole", (153, 153, 153)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
)

_LABEL = re.compile(
    r"^(?P<city>.+)_(?P<seq>\d{6})_(?P<frame>\d{6})_gtFine_(?P<kind>labelTrainIds|labelIds)\.png$"
)


class _Label(NamedTuple):
    """A labelled frame; ordered as its video is in the split."""

    city: str
    seq: str
    frame: int
    file: str


def _layout_hint(root: Path) -> str:
    return (
        f"Expected {root}/leftImg8bit_sequence/{{train,val}}/<city>/*_leftImg8bit.png and "
        f"{root}/gtFine/{{train,val}}/<city>/*_gtFine_labelTrainIds.png (or *_labelIds.png); set "
        f"VSS2_DATASETS to the folder that holds {FOLDER}."
    )


def _labels(folder: Path) -> list[_Label]:
    """The labelled frames of a split; `labelTrainIds` where a frame has both kinds."""
    found: dict[tuple[str, str, int], str] = {}
    for city in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()):
        for name in sorted(os.listdir(folder / city)):
            match = _LABEL.match(name)
            if match is None:
                continue
            key = (match["city"], match["seq"], int(match["frame"]))
            if match["kind"] == "labelTrainIds" or key not in found:
                found[key] = str(folder / city / name)
    return [_Label(*key, file) for key, file in sorted(found.items())]


def _snippet(images: Path, present: set[str], label: _Label) -> dict[str, Any] | None:
    """The video dict around one labelled frame; None after a collected problem."""
    folder = images / label.city
    first = label.frame - LABELLED_INDEX
    frames = []
    for index in range(SNIPPET_FRAMES):
        name = f"{label.city}_{label.seq}_{first + index:06d}_leftImg8bit.png"
        if name not in present:
            problem(
                InputFileError(
                    f"The snippet of {label.file} is not whole: frame {index} of "
                    f"{SNIPPET_FRAMES}, {folder / name}, is missing."
                )
            )
            return None
        frames.append(
            {
                "file_name": str(folder / name),
                "label_file": label.file if index == LABELLED_INDEX else None,
                "frame_index": index,
            }
        )
    return {
        "video_id": f"{label.city}_{label.seq}_{label.frame:06d}",
        "frames": frames,
        "label_mapping": "cityscapes",
    }


def load_cityscapes_video(root: Path | str, split: str) -> list[dict[str, Any]]:
    """Video dicts of one split, by city, sequence and frame number; nothing is decoded.

    A video is the 30 frames around one label file, which is the `label_file` of the frame with
    index 19; the other frames have None.

    Args:
        root: the folder that holds `leftImg8bit_sequence` and `gtFine`.
        split: "train" or "val".

    Raises:
        InputFileError: a folder or a frame of a snippet is missing.
        InputError: the split is unknown or has no label files.
    """
    root = Path(root)
    if split not in SPLITS:
        raise InputError(
            f"Cityscapes video has no split {split!r}, only 'train' and 'val'."
            f"{did_you_mean(split, SPLITS)}"
        )
    images, labels = root / "leftImg8bit_sequence" / split, root / "gtFine" / split
    for folder in (images, labels):
        if not folder.is_dir():
            raise InputFileError(f"The folder {folder} does not exist. {_layout_hint(root)}")
    labelled = _labels(labels)
    if not labelled:
        raise InputError(f"There are no label files in {labels}. {_layout_hint(root)}")
    present: dict[str, set[str]] = {}
    videos = []
    for label in labelled:
        if label.city not in present:
            city = images / label.city
            present[label.city] = set(os.listdir(city)) if city.is_dir() else set()
        video = _snippet(images, present[label.city], label)
        if video is not None:
            videos.append(video)
    return videos


def register() -> None:
    """Register cityscapes_video_train and cityscapes_video_val; may be called again."""
    for split in SPLITS:
        name = f"cityscapes_video_{split}"
        if name not in DatasetCatalog:
            DatasetCatalog.register(
                name, lambda split=split: load_cityscapes_video(datasets_root() / FOLDER, split)
            )
        MetadataCatalog.get(name).set(
            stuff_classes=[name for name, _ in CLASSES],
            stuff_colors=[color for _, color in CLASSES],
            ignore_label=IGNORE_LABEL,
            label_mapping="cityscapes",
            evaluator_type="vss",
            folder=FOLDER,
        )
