"""What a data set's folders and lists say it holds, faults included; nothing is decoded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from vss2.data.datasets.vspw import FRAME_SUFFIXES, SPLITS
from vss2.data.doctor.findings import Finding
from vss2.data.labels import DEFAULT_MAPPING
from vss2.errors import InputFileError, did_you_mean


class ListedFrame(NamedTuple):
    """Files of one frame; `label` is None where none is expected or it is missing."""

    image: str
    label: str | None


@dataclass
class ListedVideo:
    """The frames of a video, in order."""

    video_id: str
    frames: list[ListedFrame]
    label_mapping: str = DEFAULT_MAPPING


@dataclass
class Listing:
    """Videos to look into, and what is wrong before a file is opened."""

    videos: list[ListedVideo] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts names as a person would: "frame_2" before "frame_10"."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def order_findings(video: ListedVideo) -> list[Finding]:
    """Frames that do not come in the order of their numbers."""
    for before, after in pairwise(frame.image for frame in video.frames):
        if natural_key(Path(before).stem) >= natural_key(Path(after).stem):
            message = (
                f"The frames of video {video.video_id!r} are out of order: {after} comes after "
                f"{before}."
            )
            return [Finding("frame_order", message, video.video_id, after)]
    return []


def length_findings(video: ListedVideo, where: str = "") -> list[Finding]:
    """Videos with no frame or with one."""
    if not video.frames:
        message = f"The video {video.video_id!r} has no frames{f' in {where}' if where else ''}."
        return [Finding("video_empty", message, video.video_id, where)]
    if len(video.frames) == 1:
        message = f"The video {video.video_id!r} has a single frame, {video.frames[0].image}."
        return [Finding("video_one_frame", message, video.video_id, video.frames[0].image)]
    return []


def list_video_dicts(videos: Iterable[Mapping[str, Any]]) -> Listing:
    """Listing of video dicts, as a data set function returns them."""
    listing = Listing()
    seen: set[str] = set()
    for video in videos:
        name = str(video.get("video_id"))
        frames = [ListedFrame(f["file_name"], f.get("label_file")) for f in video["frames"]]
        listed = ListedVideo(name, frames, video.get("label_mapping", DEFAULT_MAPPING))
        listing.findings += length_findings(listed) + order_findings(listed)
        indices = [f.get("frame_index", i) for i, f in enumerate(video["frames"])]
        if indices != list(range(len(indices))):
            message = f"The frame_index of video {name!r} does not count 0, 1, 2, ..."
            listing.findings.append(Finding("frame_order", message, name))
        if name in seen:
            message = f"The video id {name!r} occurs twice."
            listing.findings.append(Finding("list_duplicate", message, name))
        else:
            listing.videos.append(listed)
        seen.add(name)
    return listing


def list_vspw_folder(root: Path, splits: Sequence[str] | None = None) -> Listing:
    """Listing of a folder in VSPW's layout.

    Args:
        root: holds `data` and the list files.
        splits: names of list files without `.txt`; None = all of train, val and test that exist.

    Raises:
        InputFileError: the folder, its `data` or a list file is missing.
    """
    if not (root / "data").is_dir():
        raise InputFileError(f"{root} is no folder in VSPW's layout: {root / 'data'} is missing.")
    lists = {split: root / f"{split}.txt" for split in SPLITS if (root / f"{split}.txt").is_file()}
    for split in splits or ():
        if not (root / f"{split}.txt").is_file():
            raise InputFileError(f"The list of videos {root / split}.txt does not exist.")
        lists[split] = root / f"{split}.txt"
    if not lists:
        raise InputFileError(f"{root} holds no list of videos (train.txt, val.txt, test.txt).")
    return _VSPWLister(root, lists).run(tuple(splits or lists))


class _VSPWLister:
    """Walks one folder in VSPW's layout."""

    def __init__(self, root: Path, lists: Mapping[str, Path]):
        self.data = root / "data"
        self.lists = lists
        self.folders = sorted(
            entry.name
            for entry in os.scandir(self.data)
            if entry.is_dir() and not entry.name.startswith(".")
        )
        self.listing = Listing()

    def _found(self, kind: str, message: str, video: str = "", file: object = "") -> None:
        self.listing.findings.append(Finding(kind, message, video, str(file)))

    def run(self, splits: Sequence[str]) -> Listing:
        """Look into the lists of all splits, and into the videos of these."""
        named = {split: self._names(split) for split in self.lists}
        done: set[str] = set()
        for split in splits:
            present = [name for name in named[split] if self._has_folder(name, split)]
            labelled = any((self.data / name / "mask").is_dir() for name in present)
            for name in present:
                if name not in done:
                    done.add(name)
                    self._video(name, labelled)
        unlisted = set(self.folders).difference(*named.values())
        for name in sorted(unlisted):
            folder = self.data / name
            self._found("list_unlisted", f"No list names the video {folder}.", name, folder)
        return self.listing

    def _names(self, split: str) -> list[str]:
        """Distinct names of a list; reports those that another list or line had before."""
        path = self.lists[split]
        names: dict[str, None] = {}
        others = [other for other in self.lists if other < split]
        elsewhere = {name: other for other in others for name in self._lines(self.lists[other])}
        for name in self._lines(path):
            if name in names:
                self._found("list_duplicate", f"{path} lists {name!r} twice.", name, path)
                continue
            names[name] = None
            if name in elsewhere:
                message = f"The video {name!r} is in both {path} and {elsewhere[name]}.txt."
                self._found("list_duplicate", message, name, path)
        if not names:
            self._found("list_empty", f"The list of videos {path} names no video.", "", path)
        return list(names)

    @staticmethod
    def _lines(path: Path) -> list[str]:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputFileError(f"Cannot read the list of videos {path}: {error}.") from error
        return [line.strip() for line in text.splitlines() if line.strip()]

    def _has_folder(self, name: str, split: str) -> bool:
        if name in self.folders:
            return True
        message = (
            f"{self.lists[split]} lists {name!r}, but {self.data / name} does not exist."
            f"{did_you_mean(name, self.folders)}"
        )
        self._found("list_unknown", message, name, self.lists[split])
        return False

    def _video(self, name: str, labelled: bool) -> None:
        origin, mask = self.data / name / "origin", self.data / name / "mask"
        images = _stems(origin, FRAME_SUFFIXES)
        masks = _stems(mask, (".png",))
        frames = [
            ListedFrame(str(origin / file), str(mask / masks[stem]) if stem in masks else None)
            for stem, file in images.items()
        ]
        video = ListedVideo(name, frames)
        self.listing.videos.append(video)
        self.listing.findings += length_findings(video, str(origin)) + order_findings(video)
        if labelled and images and not masks:
            message = f"The video {name!r} has no label maps in {mask}."
            self._found("label_missing", message, name, mask)
        elif labelled:
            for stem in images.keys() - masks.keys():
                path = mask / f"{stem}.png"
                message = f"The frame {origin / images[stem]} has no label map {path}."
                self._found("label_missing", message, name, path)
        for stem in masks.keys() - images.keys():
            path = mask / masks[stem]
            self._found("label_extra", f"The label map {path} has no frame.", name, path)


def _stems(folder: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Stem -> file name of a folder's visible files with one of the suffixes, in order."""
    if not folder.is_dir():
        return {}
    names = (n for n in os.listdir(folder) if not n.startswith("."))
    return {Path(n).stem: n for n in sorted(names) if n.lower().endswith(suffixes)}
