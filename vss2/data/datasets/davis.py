"""DAVIS 2016 and 2017 (Perazzi et al., CVPR 2016; Pont-Tuset et al., 2017) at 480p.

DAVIS/2016/{JPEGImages,Annotations}/480p/<video>/%05d.{jpg,png}
DAVIS/2017/trainval/{JPEGImages,Annotations}/480p/<video>/%05d.{jpg,png}
DAVIS/2017/trainval/ImageSets/{2016,2017}/{train,val}.txt
DAVIS/2017/test-dev/...   masks of first frames only; ImageSets/2017/test-dev.txt
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.datasets.frame_files import (
    IMAGE_SUFFIXES,
    check_masks,
    read_video_list,
    sorted_files,
)
from vss2.data.datasets.roots import datasets_root
from vss2.data.problems import problem
from vss2.errors import InputError, InputFileError, did_you_mean

FOLDER = "DAVIS"


class _Split(NamedTuple):
    """Where a split lies below the DAVIS folder, and whether all of its frames are annotated."""

    base: str
    list_file: str
    annotated: bool = True


SPLITS = {
    "2016_train": _Split("2016", "2017/trainval/ImageSets/2016/train.txt"),
    "2016_val": _Split("2016", "2017/trainval/ImageSets/2016/val.txt"),
    "2017_train": _Split("2017/trainval", "2017/trainval/ImageSets/2017/train.txt"),
    "2017_val": _Split("2017/trainval", "2017/trainval/ImageSets/2017/val.txt"),
    "2017_testdev": _Split("2017/test-dev", "2017/test-dev/ImageSets/2017/test-dev.txt", False),
}


def load_davis(root: Path | str, split: str) -> list[dict[str, Any]]:
    """Video dicts of one split, in the order of its list file; nothing is decoded.

    Every frame is required; the mask of the first one is given (`mask_file`). Where only first
    frames are annotated (test-dev), `label_file` is None.

    Args:
        root: the DAVIS folder.
        split: one of `SPLITS`, such as "2017_val".

    Raises:
        InputFileError: a list, a listed video or a mask is missing.
        InputError: the split is unknown, its list names nothing or a video twice, or a video has
            no frames.
    """
    root = Path(root)
    if split not in SPLITS:
        raise InputError(
            f"DAVIS has no split {split!r}, expected one of {', '.join(SPLITS)}."
            f"{did_you_mean(split, SPLITS)}"
        )
    base, list_file, annotated = SPLITS[split]
    hint = (
        f"Expected {root / list_file} and {root / base}/{{JPEGImages,Annotations}}/480p/<video>/; "
        f"set VSS2_DATASETS to the folder that holds {FOLDER}."
    )
    videos = []
    for name in read_video_list(root / list_file, hint):
        try:
            videos.append(_load_video(root / base, name, annotated, hint))
        except InputError as error:
            problem(error)
    return videos


def _load_video(base: Path, name: str, annotated: bool, hint: str) -> dict[str, Any]:
    folder, label_folder = (base / part / "480p" / name for part in ("JPEGImages", "Annotations"))
    for there in (folder, label_folder):
        if not there.is_dir():
            raise InputFileError(f"The video {name!r} has no folder {there}. {hint}")
    names = sorted_files(folder, IMAGE_SUFFIXES)
    if not names:
        raise InputError(f"The video {name!r} is empty: {folder} holds no frames (*.jpg).")
    masks = sorted_files(label_folder, (".png",))
    check_masks(names if annotated else names[:1], masks, label_folder, name)
    frames = []
    for index, file in enumerate(names):
        mask = str(label_folder / f"{Path(file).stem}.png")
        frames.append(
            {
                "file_name": str(folder / file),
                "label_file": mask if annotated else None,
                "frame_index": index,
                "mask_file": None if index else mask,
                "required": True,
            }
        )
    return {"video_id": name, "frames": frames}


def register() -> None:
    """Register davis_2016_val, davis_2017_train and the others; may be called again."""
    for split in SPLITS:
        name = f"davis_{split}"
        if name not in DatasetCatalog:
            DatasetCatalog.register(
                name, lambda split=split: load_davis(datasets_root() / FOLDER, split)
            )
        year = int(split[:4])
        MetadataCatalog.get(name).set(evaluator_type="davis", year=year, folder=FOLDER)
