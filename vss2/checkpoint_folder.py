"""The checkpoint files in the folder of a run: which are there, and which one to go on from."""

from __future__ import annotations

import re
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import TypeVar

from .checkpoint_io import atomic_write
from .errors import InputFileError

TAG = "last_checkpoint"
FINAL = "model_final"
# The tag of a run that started from scratch where an earlier run had left checkpoints.
NOT_SAVED_YET = "none (this run has not saved yet)"

_PERIODIC = re.compile(r"model_(\d{7,})\.pth")

logger = getLogger(__name__)

T = TypeVar("T")


def periodic_name(iteration: int) -> str:
    """Name, without suffix, of the checkpoint that is written after `iteration`."""
    return f"model_{iteration:07d}"


def periodic_files(folder: Path) -> list[tuple[int, Path]]:
    """(iteration, file) of the periodic checkpoints, oldest iteration first."""
    found = ((_PERIODIC.fullmatch(file.name), file) for file in folder.glob("model_*.pth"))
    return sorted((int(match[1]), file) for match, file in found if match)


def write_tag(folder: Path, text: str) -> None:
    """Point a resume to the file of that name in `folder`."""
    with atomic_write(folder / TAG) as temporary:
        temporary.write_text(text)


def resumable_files(folder: Path) -> list[Path]:
    """What a resume may go on from, best first: the tagged file, then others, newest first.

    The best checkpoint is none of them, since it holds weights only.
    """
    tagged = _tagged(folder)
    if tagged == NOT_SAVED_YET:
        return []
    files = [file for _, file in periodic_files(folder)]
    files += [file for file in [folder / f"{FINAL}.pth"] if file.is_file()]
    ages = {file: (file.stat().st_mtime_ns, file.name) for file in files}
    files.sort(key=lambda file: ages[file], reverse=True)
    first = folder / tagged if tagged else None
    if first is not None and first.name == tagged and first.is_file():
        return [first, *(file for file in files if file != first)]
    return files


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has saved in `folder`, be what is left of it good or not."""
    tagged = _tagged(folder)
    return tagged != NOT_SAVED_YET and (tagged is not None or bool(resumable_files(folder)))


def newest_good(folder: Path, accept: Callable[[Path], T]) -> tuple[Path, T] | None:
    """The newest checkpoint of a run that `accept` does not refuse, and what it returned.

    Args:
        folder: of the run.
        accept: raises InputFileError for a file that is damaged or none of a run. What is refused
            so is named in the log, with the reason.

    Returns:
        None where no run has saved.

    Raises:
        InputFileError: there were checkpoints, and none is good; gives the reason for each.
    """
    if not has_checkpoint(folder):
        return None
    reasons = []
    files = resumable_files(folder)
    tagged = _tagged(folder)
    if not files or files[0].name != tagged:
        what = "is missing" if tagged is None else f"names {tagged[:80]!r}, which is not there"
        reasons.append(f"{folder / TAG} {what}")
    for file in files:
        try:
            result = accept(file)
        except InputFileError as e:
            reasons.append(str(e))
            continue
        for reason in reasons:
            logger.warning("%s", reason)
        if reasons:
            logger.warning("taking %s, the newest good checkpoint, instead", file)
        return file, result
    raise InputFileError(
        f"no checkpoint in {folder} can be used: {'; '.join(reasons)}. Repair or replace one of "
        "them, or start from scratch without --resume"
    )


def start_afresh(folder: Path) -> None:
    """Let a resume no longer go on from what an earlier run has left in `folder`."""
    if has_checkpoint(folder):
        write_tag(folder, NOT_SAVED_YET)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of saves that were cut off."""
    for leftover in folder.glob("*.tmp"):
        if leftover.name.startswith(TAG) or leftover.name.endswith((".pth.tmp", ".json.tmp")):
            logger.info("removing %s, left by a save that was cut off", leftover)
            try:
                leftover.unlink(missing_ok=True)
            except OSError as e:
                logger.warning("cannot remove %s: %s", leftover, e.strerror)


def _tagged(folder: Path) -> str | None:
    """What the tag says; None where there is none."""
    try:
        return (folder / TAG).read_bytes().decode(errors="replace").strip()
    except OSError:
        return None
