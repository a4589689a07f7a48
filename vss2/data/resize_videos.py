"""Resizing a whole data set once, so that training reads small files (YouTube-VOS to 480p)."""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from vss2.data.datasets.frame_files import IMAGE_SUFFIXES, sorted_files, sorted_folders
from vss2.data.image_io import read_image_bytes, write_bytes
from vss2.errors import InputError, InputFileError

PARTS = ("JPEGImages", "Annotations")
_CHUNK = 32  # files that a process takes at a time


def resize_videos(
    source: Path,
    target: Path,
    size: int = 480,
    num_workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> int:
    """Resize frames and masks of `source/{JPEGImages,Annotations}/<video>/` into `target`.

    The shorter side becomes `size`, sides are truncated to whole pixels as published; images
    bicubic, masks nearest with their palette. Files that are there already are kept, so a call
    that was cut off can be repeated.

    Args:
        num_workers: processes; None: one per CPU, at most 8.
        progress: called with (files done, files in all).

    Returns:
        How many files were written.

    Raises:
        InputFileError: a folder is missing, a file is damaged or cannot be written.
        InputError: a size or number of processes below 1, or a mask that is no 8-bit image of ids.
    """
    workers = min(os.cpu_count() or 1, 8) if num_workers is None else num_workers
    if size < 1 or workers < 1:
        raise InputError(f"size and num_workers are at least 1, got {size} and {workers}.")
    if source.resolve() == target.resolve():
        raise InputError(f"The resized videos cannot go to where they come from, {source}.")
    todo = [
        (file, target / file.relative_to(source))
        for file in _files(source)
        if not (target / file.relative_to(source)).is_file()
    ]
    for done, _ in enumerate(_mapped(partial(_resize_file, size=size), todo, workers), start=1):
        if progress is not None:
            progress(done, len(todo))
    return len(todo)


def _files(source: Path) -> Iterator[Path]:
    hint = f"Expected {source}/{{JPEGImages,Annotations}}/<video>/."
    for part in PARTS:
        for video in sorted_folders(source / part, hint):
            for name in sorted_files(source / part / video, IMAGE_SUFFIXES):
                yield source / part / video / name


def _mapped(
    function: Callable[[tuple[Path, Path]], object], items: list[tuple[Path, Path]], workers: int
) -> Iterator[object]:
    if workers == 1 or len(items) <= _CHUNK:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        try:
            yield from pool.map(function, items, chunksize=_CHUNK)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _resize_file(paths: tuple[Path, Path], size: int) -> None:
    source, target = paths
    data = read_image_bytes(source)
    is_mask = source.suffix.lower() == ".png"
    try:
        with Image.open(io.BytesIO(data)) as image:
            if is_mask and image.mode not in ("P", "L"):
                raise InputError(
                    f"The mask {source} must be an 8-bit palette or grey image, got mode "
                    f"{image.mode!r}."
                )
            factor = size / min(image.size)
            width, height = (max(int(side * factor), 1) for side in image.size)
            method = Image.Resampling.NEAREST if is_mask else Image.Resampling.BICUBIC
            small = image.resize((width, height), method)
    except (OSError, SyntaxError) as error:
        raise InputFileError(f"Cannot decode the image {source}: {error}.") from error
    out = io.BytesIO()
    small.save(out, format="PNG" if is_mask else "JPEG")
    write_bytes(target, out.getvalue())
