"""BL30K, rendered videos of 160 frames with 3 to 5 objects (Cheng et al., MiVOS, CVPR 2021).

BL30K/JPEGImages/<video>/<frame>.jpg
BL30K/Annotations/<video>/<frame>.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.datasets.frame_files import (
    IMAGE_SUFFIXES,
    FrameFiles,
    check_masks,
    sorted_files,
    sorted_folders,
)
from vss2.data.datasets.roots import datasets_root
from vss2.data.problems import problem
from vss2.errors import InputError

FOLDER = "BL30K"


def load_bl30k(root: Path | str) -> list[dict[str, Any]]:
    """Video dicts of the whole set, sorted by name; nothing is decoded.

    Raises:
        InputFileError: the folder, a video's masks or one of them is missing.
        InputError: a video has no frames.
    """
    root = Path(root)
    hint = (
        f"Expected {root}/{{JPEGImages,Annotations}}/<video>/; the parts a to f of the download "
        f"are extracted beside each other. Set VSS2_DATASETS to the folder that holds {FOLDER}."
    )
    videos = []
    for name in sorted_folders(root / "JPEGImages", hint):
        folder, masks = root / "JPEGImages" / name, root / "Annotations" / name
        try:
            files = sorted_files(folder, IMAGE_SUFFIXES)
            if not files:
                raise InputError(f"The video {name!r} is empty: {folder} holds no frames (*.jpg).")
            check_masks(files, sorted_files(masks, (".png",)), masks, name)
        except InputError as error:
            problem(error)
            continue
        videos.append({"video_id": name, "frames": FrameFiles(folder, files, masks)})
    return videos


def register() -> None:
    """Register bl30k_train; may be called again."""
    if "bl30k_train" not in DatasetCatalog:
        DatasetCatalog.register("bl30k_train", lambda: load_bl30k(datasets_root() / FOLDER))
    MetadataCatalog.get("bl30k_train").set(folder=FOLDER)
