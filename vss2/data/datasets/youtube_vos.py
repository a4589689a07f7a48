"""YouTube-VOS 2018 and 2019 (Xu et al., ECCV 2018): layout on disk to video dicts.

YouTube/train_480p/{JPEGImages,Annotations}/<video>/%05d.{jpg,png}   2019, every 5th frame
YouTube/train_subset.txt                                             optional: videos to train on
YouTube/valid/{JPEGImages,Annotations}/<video>/, meta.json           masks where objects appear
YouTube/all_frames/valid_all_frames/JPEGImages/<video>/              every frame, 30 per second
YouTube2018/valid/..., YouTube2018/all_frames/...                    2018, as 2019's
YouTube2018/train_all_frames/JPEGImages/<video>/%05d.jpg, YouTube2018/ytvos.csv
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data.datasets.frame_files import (
    IMAGE_SUFFIXES,
    FrameFiles,
    check_masks,
    read_video_list,
    sorted_files,
    sorted_folders,
)
from vss2.data.datasets.roots import datasets_root
from vss2.data.datasets.ytvos_index import FrameRange, build_ytvos_index, read_ytvos_index
from vss2.data.problems import problem
from vss2.errors import InputError, InputFileError

logger = logging.getLogger(__name__)

FOLDERS = {2018: "YouTube2018", 2019: "YouTube"}
ANNOTATION_STEP = 5  # frames of video from one annotated frame to the next
SUBSET = "train_subset.txt"
INDEX = "ytvos.csv"


class _Valid(NamedTuple):
    """Folders of a validation set."""

    images: Path
    masks: Path
    truth: Path | None


def load_youtube_vos_train(root: Path | str) -> list[dict[str, Any]]:
    """Video dicts of the training set at 480p; nothing is decoded.

    `<root>/train_subset.txt`, where it is there, names the videos to use (STCN trains on 3464 of
    the 3471). `frame_step` says how many frames of video lie between two annotated ones.

    Raises:
        InputFileError: the folder, a video of the list or a mask is missing.
        InputError: a video has no frames.
    """
    root = Path(root)
    base = root / "train_480p"
    hint = (
        f"Expected {base}/{{JPEGImages,Annotations}}/<video>/; `vss2 data resize-youtube` makes "
        f"it from {root}/train."
    )
    names = sorted_folders(base / "JPEGImages", hint)
    if (root / SUBSET).is_file():
        wanted = set(read_video_list(root / SUBSET, hint))
        logger.info("%s names %d of %d videos", root / SUBSET, len(wanted), len(names))
        names = [name for name in names if name in wanted]
    videos = []
    for name in names:
        folder, masks = (base / part / name for part in ("JPEGImages", "Annotations"))
        try:
            files = _frame_names(folder, name)
            check_masks(files, sorted_files(masks, (".png",)), masks, name)
        except InputError as error:
            problem(error)
            continue
        frames = FrameFiles(folder, files, masks)
        videos.append({"video_id": name, "frames": frames, "frame_step": ANNOTATION_STEP})
    return videos


def load_youtube_vos_valid(
    root: Path | str, all_frames: bool = False, truth: str | None = None
) -> list[dict[str, Any]]:
    """Video dicts of the validation set, in the order of names; nothing is decoded.

    A frame with a mask file gives that mask (`mask_file`): of the objects that appear there, 0
    is "not labelled". Frames that meta.json lists for an object are `required`.

    Args:
        root: `YouTube` or `YouTube2018`.
        all_frames: take every frame instead of every fifth.
        truth: folder below `<root>/valid` with the dense masks of required frames, which the
            benchmark keeps private; None: there are none.

    Raises:
        InputFileError: a folder, a video, meta.json or a given mask's frame is missing.
        InputError: meta.json is damaged, or a video has no frames or no given mask.
    """
    root = Path(root)
    base = root / "valid"
    images = root / "all_frames/valid_all_frames" if all_frames else base
    hint = (
        f"Expected {base}/Annotations/<video>/, {base}/meta.json and "
        f"{images}/JPEGImages/<video>/; set VSS2_DATASETS to the folder that holds {root.name}."
    )
    folders = _Valid(
        images / "JPEGImages", base / "Annotations", None if truth is None else base / truth
    )
    videos = []
    for name, objects in sorted(read_meta(base / "meta.json", hint).items()):
        try:
            required = {stem for info in objects.values() for stem in info["frames"]}
            videos.append(_load_valid(folders, name, required, hint))
        except InputError as error:
            problem(error)
    return videos


def _load_valid(folders: _Valid, name: str, required: set[str], hint: str) -> dict[str, Any]:
    folder, mask_folder = folders.images / name, folders.masks / name
    for there in (folder, mask_folder):
        if not there.is_dir():
            raise InputFileError(f"The video {name!r} has no folder {there}. {hint}")
    masks = {
        Path(file).stem: str(mask_folder / file) for file in sorted_files(mask_folder, (".png",))
    }
    files = _frame_names(folder, name)
    stems = [Path(file).stem for file in files]
    if not masks:
        raise InputError(f"The video {name!r} has no given mask: {mask_folder} holds no *.png.")
    there_is = set(stems)
    for stem in (*masks, *sorted(required)):
        if stem not in there_is:
            raise InputFileError(
                f"The video {name!r} lacks the frame {folder / stem}.jpg, which has a mask or is "
                "listed in meta.json."
            )
    frames = [
        {
            "file_name": str(folder / file),
            "label_file": _truth_file(folders.truth, name, stem) if stem in required else None,
            "frame_index": index,
            "mask_file": masks.get(stem),
            "required": stem in required,
        }
        for index, (file, stem) in enumerate(zip(files, stems, strict=True))
    ]
    return {"video_id": name, "frames": frames}


def _truth_file(folder: Path | None, video: str, stem: str) -> str | None:
    return None if folder is None else str(folder / video / f"{stem}.png")


def _frame_names(folder: Path, video: str) -> list[str]:
    names = sorted_files(folder, IMAGE_SUFFIXES)
    if not names:
        raise InputError(f"The video {video!r} is empty: {folder} holds no frames (*.jpg).")
    return names


def read_meta(path: Path, hint: str = "") -> dict[str, dict[str, dict[str, Any]]]:
    """{video: {object id: {"category": str, "frames": [stem, ...]}}} of a meta.json.

    Raises:
        InputFileError: the file does not exist or cannot be read.
        InputError: it is not of that form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        videos = {name: video["objects"] for name, video in content["videos"].items()}
        for objects in videos.values():
            for info in objects.values():
                if not all(isinstance(stem, str) for stem in info["frames"]):
                    raise TypeError("frames are no strings")
    except OSError as error:
        raise InputFileError(f"Cannot read {path}: {error.strerror}. {hint}".strip()) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a meta.json of YouTube-VOS: expected videos.<id>.objects.<id> with "
            f"category and frames ({type(error).__name__}: {error})."
        ) from error
    return videos


def load_youtube_vos_frames(root: Path | str) -> list[dict[str, Any]]:
    """Video dicts of the full-rate training frames, without masks.

    The frame list `<root>/ytvos.csv` says which there are, or, where it is missing, the folders.

    Raises:
        InputFileError: neither `<root>/ytvos.csv` nor the frames are there.
        InputError: the list is damaged, or frames are not numbered without gaps.
    """
    root = Path(root)
    folder = root / "train_all_frames/JPEGImages"
    index = root / INDEX
    rows = read_ytvos_index(index) if index.is_file() else build_ytvos_index(folder)
    return [_unlabelled(folder, row) for row in rows]


def _unlabelled(folder: Path, row: FrameRange) -> dict[str, Any]:
    names = [row.file_name(position) for position in range(row.num_frames)]
    return {"video_id": row.video, "frames": FrameFiles(folder, names)}


def register() -> None:
    """Register youtube_vos_2019_train, youtube_vos_2019_valid and the others."""
    loaders = {
        ("2019", "train"): load_youtube_vos_train,
        ("2018", "train_all_frames"): load_youtube_vos_frames,
    }
    for year in ("2018", "2019"):
        loaders[year, "valid"] = load_youtube_vos_valid
        loaders[year, "valid_all_frames"] = lambda root: load_youtube_vos_valid(root, True)
    for (year, split), load in loaders.items():
        name, folder = f"youtube_vos_{year}_{split}", FOLDERS[int(year)]
        if name not in DatasetCatalog:
            DatasetCatalog.register(
                name, lambda load=load, folder=folder: load(datasets_root() / folder)
            )
        MetadataCatalog.get(name).set(
            evaluator_type="youtube_vos",
            year=int(year),
            folder=folder,
            meta_file=f"{folder}/valid/meta.json",
            train_meta_file=f"{FOLDERS[2019]}/train/meta.json",
        )
