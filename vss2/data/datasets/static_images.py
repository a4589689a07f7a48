"""Saliency and fine-detail image sets that STCN's stage 0 turns into short clips.

static/fss/<class>/<n>.jpg + <n>.png
static/{DUTS-TR,DUTS-TE,ecssd,BIG_small,HRSOD_small}/<name>.jpg + <name>.png

Each image is a video dict of one frame. Masks are grey images; above half is the object.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.datasets.frame_files import sorted_files, sorted_folders
from vss2.data.datasets.roots import datasets_root
from vss2.data.problems import problem
from vss2.errors import InputError, InputFileError, did_you_mean

FOLDER = "static"
SETS = {
    "fss": "fss",
    "duts_tr": "DUTS-TR",
    "duts_te": "DUTS-TE",
    "ecssd": "ecssd",
    "big": "BIG_small",
    "hrsod": "HRSOD_small",
}


def load_static_images(root: Path | str, name: str) -> list[dict[str, Any]]:
    """Video dicts of one set, each of one frame, sorted by name; nothing is decoded.

    Args:
        root: the folder `static`.
        name: one of `SETS`, such as "fss".

    Raises:
        InputFileError: the folder or a mask is missing.
        InputError: the set is unknown or holds no images.
    """
    if name not in SETS:
        raise InputError(
            f"There is no set of static images {name!r}, expected one of {', '.join(SETS)}."
            f"{did_you_mean(name, SETS)}"
        )
    folder = Path(root) / SETS[name]
    layout = "<class>/<n>.jpg and <n>.png" if name == "fss" else "<name>.jpg and <name>.png"
    hint = f"Expected {folder}/{layout}; set VSS2_DATASETS to the folder that holds {FOLDER}."
    if name == "fss":
        folders = [folder / child for child in sorted_folders(folder, hint)]
    elif folder.is_dir():
        folders = [folder]
    else:
        raise InputFileError(f"The folder {folder} does not exist. {hint}")
    videos = [video for one in folders for video in _images(one, one.relative_to(root))]
    if not videos:
        raise InputError(f"The folder {folder} holds no images (*.jpg). {hint}")
    return videos


def _images(folder: Path, prefix: Path) -> list[dict[str, Any]]:
    files = set(sorted_files(folder, (".jpg", ".png")))
    videos = []
    for file in sorted(file for file in files if file.lower().endswith(".jpg")):
        stem = Path(file).stem
        if f"{stem}.png" not in files:
            problem(InputFileError(f"The image {folder / file} has no mask {folder / stem}.png."))
            continue
        frame = {
            "file_name": str(folder / file),
            "label_file": str(folder / f"{stem}.png"),
            "frame_index": 0,
        }
        videos.append({"video_id": f"{prefix}/{stem}", "frames": [frame]})
    return videos


def register() -> None:
    """Register static_fss, static_duts_tr and the others; may be called again."""
    for key in SETS:
        name = f"static_{key}"
        if name not in DatasetCatalog:
            DatasetCatalog.register(
                name, lambda key=key: load_static_images(datasets_root() / FOLDER, key)
            )
        MetadataCatalog.get(name).set(folder=f"{FOLDER}/{SETS[key]}")
