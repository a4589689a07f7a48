"""Generated data sets on disk: made once, whole or not at all, by whoever asks first."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from vss2.errors import InputError

logger = logging.getLogger(__name__)


def make_once(folder: Path, record: str, description: str, write: Callable[[Path], object]) -> Path:
    """Make a generated folder unless it is there; several processes may ask at once.

    It is written to a temporary sibling that is renamed at the end; who loses that race throws
    his away and uses the winner's.

    Args:
        folder: where it shall be.
        record: name of the file in it that holds `description`.
        description: parameters of the world as text; one line.
        write: called with a folder to fill.

    Returns:
        `folder`.

    Raises:
        InputError: the folder holds something else, or cannot be written.
    """
    if _is_there(folder, record, description):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise InputError(
            f"Cannot write the toy world to {folder}: {error.strerror}. Set VSS2_DATASETS to a "
            "folder that can be written."
        ) from error
    logger.info("Making the toy world in %s", folder)
    try:
        scratch.chmod(0o755)
        write(scratch)
        (scratch / record).write_text(description + "\n")
        try:
            os.rename(scratch, folder)
        except OSError:
            if not _is_there(folder, record, description):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _is_there(folder: Path, record: str, description: str) -> bool:
    """Whether `folder` is this world; anything else in it is an error."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    file = folder / record
    if not file.is_file():
        raise InputError(f"{folder} is not empty and no toy world: choose another folder.")
    if file.read_text().strip() != description:
        raise InputError(
            f"{folder} holds a toy world of other parameters ({record} has them): choose "
            "another folder or remove it."
        )
    return True
