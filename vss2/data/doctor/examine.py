"""The check of a whole data set: list it, look into its files in parallel, compare its videos."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from vss2.d2.data import DatasetCatalog, MetadataCatalog
from vss2.data import datasets
from vss2.data.datasets import toy, vspw
from vss2.data.doctor.files import FrameFacts, FrameTask, examine, start_worker
from vss2.data.doctor.findings import Finding, Report
from vss2.data.doctor.listing import Listing, list_video_dicts, list_vspw_folder
from vss2.data.problems import collected_problems
from vss2.errors import InputError, did_you_mean

Progress = Callable[[int, int], object]

_FRAMES_PER_TASK = 32
# Two videos are the same when this share of the shorter one's frames is in the other, too.
_DUPLICATE_SHARE = 0.5
_CLASS_FILE = "label_num_dic_final.json"
_OBJECT_SETS = ("davis", "youtube_vos")  # evaluator types of sets whose masks hold object ids


def check_dataset(
    name: str, num_workers: int | None = None, progress: Progress | None = None
) -> Report:
    """Check a registered data set.

    Args:
        name: such as "vspw_train". Sets in VSPW's layout are checked from their folders, so that
            all faults are found at once; others from the video dicts of their function.
        num_workers: processes; None = one per CPU of this process, 0 = in this process.
        progress: called with the number of frames done so far and of all frames.

    Raises:
        InputError: unknown data set, or one whose folder or list is missing.
    """
    datasets.register_all()
    known = sorted(DatasetCatalog.list())
    if name not in known:
        hint = did_you_mean(name, known) or f" Known: {', '.join(known)}."
        raise InputError(f"Unknown data set {name!r}.{hint}")
    metadata = MetadataCatalog.get(name)
    num_classes = len(metadata.get("stuff_classes", None) or [])
    mapping = metadata.get("label_mapping", None)
    if metadata.get("evaluator_type", None) in _OBJECT_SETS:
        num_classes, mapping = 255, "ids"  # any id may be an object's
    if not num_classes:
        raise InputError(f"The metadata of data set {name!r} has no `stuff_classes`.")
    folder, split = _vspw_folder(name)
    if folder is not None:
        listing = list_vspw_folder(folder, [split])
    else:
        with collected_problems() as problems:
            listing = list_video_dicts(DatasetCatalog.get(name))
        kind = "snippet_incomplete" if name.startswith("cityscapes_") else "list_unknown"
        listing.findings += [Finding(kind, str(problem)) for problem in problems]
    for video in listing.videos if mapping is not None else ():
        video.label_mapping = mapping
    return check_listing(name, listing, num_classes, num_workers, progress)


def _vspw_folder(name: str) -> tuple[Path | None, str]:
    """Folder and split of a built-in set in VSPW's layout."""
    prefix, _, split = name.rpartition("_")
    if prefix == "vspw":
        return datasets.datasets_root() / vspw.FOLDER, split
    if prefix == "toy":
        return toy.make_toy_world(), split
    return None, split


def check_folder(
    root: Path | str,
    split: str | None = None,
    num_classes: int | None = None,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a folder in VSPW's layout.

    Args:
        root: holds `data` and the list files.
        split: name of a list file without `.txt`; None = all of train, val and test that exist.
        num_classes: None = the largest raw id in `label_num_dic_final.json`, else VSPW's 124.
        num_workers, progress: see `check_dataset`.

    Raises:
        InputFileError: the folder or a list file is missing.
        InputError: `label_num_dic_final.json` is damaged.
    """
    root = Path(root).expanduser()
    listing = list_vspw_folder(root, None if split is None else [split])
    if num_classes is None:
        num_classes = _num_classes(root)
    name = str(root) if split is None else f"{root} ({split})"
    return check_listing(name, listing, num_classes, num_workers, progress)


def _num_classes(root: Path) -> int:
    path = root / _CLASS_FILE
    if not path.is_file():
        return len(vspw.CLASS_NAMES)
    try:
        ids = [int(value) for value in json.loads(path.read_text()).values()]
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} must be {{class name: raw id}}: {error}.") from error
    # 255 is void, and some tools list it.
    return max((i for i in ids if i < 255), default=len(vspw.CLASS_NAMES))


def check_listing(
    name: str,
    listing: Listing,
    num_classes: int,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check the files and videos of a listing; see `check_dataset`."""
    begin = time.perf_counter()
    tasks = [
        FrameTask(index, video.video_id, video.frames[i : i + _FRAMES_PER_TASK], num_classes, m)
        for index, video in enumerate(listing.videos)
        for m in (video.label_mapping,)
        for i in range(0, len(video.frames), _FRAMES_PER_TASK)
    ]
    findings = list(listing.findings)
    digests: dict[int, list[bytes]] = defaultdict(list)
    sizes: dict[int, Counter[tuple[int, int]]] = defaultdict(Counter)
    masks = done = 0
    total = sum(len(video.frames) for video in listing.videos)
    for facts in _run(tasks, num_workers):
        findings += facts.findings
        digests[facts.video] += facts.digests
        sizes[facts.video].update(size for size in facts.sizes if size is not None)
        masks += facts.masks
        done += len(facts.sizes)
        if progress is not None:
            progress(done, total)
    ids = [video.video_id for video in listing.videos]
    findings += _uneven_videos(ids, sizes) + _duplicates(ids, digests)
    return Report(
        name,
        findings,
        videos=len(ids),
        frames=total,
        masks=masks,
        seconds=time.perf_counter() - begin,
    )


def _run(tasks: Sequence[FrameTask], num_workers: int | None) -> Iterator[FrameFacts]:
    """The facts of all tasks, in any order."""
    if num_workers is None:
        num_workers = _usable_cpus()
    if num_workers < 0:
        raise InputError(f"The number of workers must be >= 0, got {num_workers}.")
    if num_workers == 0 or len(tasks) < 2:
        yield from map(examine, tasks)
        return
    # Forked workers need not import anything; elsewhere forking is not safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(min(num_workers, len(tasks)), context, start_worker)
    try:
        for future in as_completed([pool.submit(examine, task) for task in tasks]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _uneven_videos(ids: Sequence[str], sizes: dict[int, Counter[tuple[int, int]]]) -> list[Finding]:
    """Videos whose frames differ in size."""
    found = []
    for index, counted in sizes.items():
        if len(counted) > 1:
            listed = ", ".join(f"{h}x{w} ({n})" for (h, w), n in counted.most_common())
            message = f"The frames of video {ids[index]!r} differ in size: {listed}."
            found.append(Finding("size_mismatch", message, ids[index]))
    return found


def _duplicates(ids: Sequence[str], digests: dict[int, list[bytes]]) -> list[Finding]:
    """Pairs of videos that share at least half of the shorter one's frames, byte by byte."""
    distinct = {index: set(frames) for index, frames in digests.items()}
    holders: dict[bytes, list[int]] = defaultdict(list)
    shared: Counter[tuple[int, int]] = Counter()
    for index in sorted(distinct):
        for digest in distinct[index]:
            # The first holder is enough: copies of a copy are still paired with the original.
            for other in holders[digest][:1]:
                shared[other, index] += 1
            holders[digest].append(index)
    found = []
    for (first, second), count in sorted(shared.items()):
        shorter = min(len(distinct[first]), len(distinct[second]))
        if count >= _DUPLICATE_SHARE * shorter:
            message = (
                f"The videos {ids[first]!r} and {ids[second]!r} hold the same content: {count} of "
                f"{shorter} frames are equal."
            )
            found.append(Finding("video_duplicate", message, ids[second]))
    return found
