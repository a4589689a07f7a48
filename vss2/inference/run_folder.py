"""The folder of a prediction run: what belongs to it, whose run it is, how far it came."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vss2.d2.utils import PathManager
from vss2.data.image_io import write_bytes
from vss2.errors import InputError, InputFileError

MANIFEST = "predict.json"
LABELS, RLE, SCORES = "labels", "rle", "scores"
OVERLAY, PAIRS, SHEET = "overlay.mp4", "side_by_side.mp4", "contact_sheet.png"
PER_FRAME = {LABELS: ".png", RLE: ".json", SCORES: ".npz"}  # folder -> suffix of its files
WHOLE = (OVERLAY, PAIRS, SHEET)
_VERSION = 1


def config_values(cfg: DictConfig) -> dict[str, Any]:
    """What of a config decides on labels, model and resize: dotted key -> plain value."""
    nodes = {
        "model": cfg.model,
        "dataloader.test.mapper.resize": cfg.dataloader.test.mapper.get("resize"),
    }
    values: dict[str, Any] = {}
    pending = [
        (key, OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)
        for key, node in nodes.items()
    ]
    while pending:
        key, value = pending.pop(0)
        if isinstance(value, Mapping) and value:
            pending += [(f"{key}.{name!s}", inner) for name, inner in value.items()]
        else:
            values[key] = json.loads(json.dumps(value, default=_described))
    return values


def _described(value: Any) -> str:
    """A stable text for what JSON has no form for: classes, functions, other objects."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, or of what a URL fetches."""
    local = PathManager.get_local_path(str(path)) if "://" in str(path) else path
    digest = hashlib.sha256()
    try:
        with open(local, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputFileError(f"Cannot read the file {path}: {error.strerror}.") from error
    return digest.hexdigest()


class RunFolder:
    """The results of one run, and the manifest `predict.json` that says which run that is.

    Args:
        folder: may be missing.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._document: dict[str, Any] = {}
        self._made: list[Path] = []

    def check(self, resume: bool = False, overwrite: bool = False) -> None:
        """Raise InputError unless a run may write here; changes nothing.

        Results of an earlier run need `resume` or `overwrite`. A folder of ours that holds
        anything but a run's files is never taken.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"The output {self.folder} is a file: expected a folder.")
        for name, suffix in PER_FRAME.items():
            inside = self.folder / name
            if inside.exists() and not (
                inside.is_dir() and all(f.suffix in (suffix, ".tmp") for f in inside.iterdir())
            ):
                raise InputError(f"{inside} holds more than *{suffix} files: it is not replaced.")
        there = [name for name in (*PER_FRAME, *WHOLE) if (self.folder / name).exists()]
        old = self._read()
        if overwrite or not (old or there):
            return
        if old is None:
            raise InputError(
                f"{self.folder} holds results of an unknown run ({', '.join(there)}): choose "
                "another folder or allow to overwrite them (--overwrite)."
            )
        if not resume:
            unfinished = old["status"] != "complete"
            kind = "an unfinished" if unfinished else "a complete"
            go_on = "go on with it (--resume), " if unfinished and old["resumable"] else ""
            raise InputError(
                f"{self.folder} holds {kind} run: {go_on}"
                "choose another folder or allow to overwrite it (--overwrite)."
            )

    def begin(
        self,
        identity: Mapping[str, Any],
        *,
        about: Mapping[str, Any] | None = None,
        resume: bool = False,
        overwrite: bool = False,
        resumable: bool = True,
    ) -> str:
        """Make the folder this run's own.

        Args:
            identity: what decides on the results; nested, JSON's types. A run is resumed with
                the same identity only.
            about: more to note down; not compared.
            resumable: whether the input can be read again.

        Returns:
            "new", "resumed", or "complete" where the run was finished before.

        Raises:
            InputError: see `check`; the folder holds another run.
        """
        self.check(resume, overwrite)
        identity = json.loads(json.dumps(identity))
        old = self._read()
        if old is not None and not overwrite:
            differences = _differences(_flat(old["identity"]), _flat(identity))
            if differences:
                raise InputError(
                    f"{self.folder} holds another run: {'; '.join(differences[:3])}"
                    f"{'; …' if len(differences) > 3 else ''}. Resume with the same arguments, "
                    "choose another folder or allow to overwrite it (--overwrite)."
                )
            self._document = old
            self._sweep()
            return "complete" if old["status"] == "complete" and self._whole(old) else "resumed"
        if overwrite:
            self._clear()
        self._document = {
            "version": _VERSION,
            "status": "unfinished",
            "frames": None,
            "resumable": resumable,
            "about": dict(about or {}),
            "identity": identity,
        }
        self._make()
        self._write()
        return "new"

    def complete(self, frames: int) -> None:
        """Note that the run is finished."""
        self._document |= {"status": "complete", "frames": frames}
        self._write()

    def abandon(self) -> None:
        """Take back what `begin` made, if no frame's result is there."""
        self._sweep()
        for name in PER_FRAME:
            inside = self.folder / name
            if inside.is_dir() and any(inside.iterdir()):
                return
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for folder in [self.folder / name for name in PER_FRAME] + self._made[::-1]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def frames(self) -> int | None:
        """Number of frames of a complete run."""
        return self._document.get("frames")

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / MANIFEST
        if not path.exists():
            return None
        try:
            document = json.loads(path.read_bytes())
            if document["version"] == _VERSION and {"status", "identity", "resumable"} <= set(
                document
            ):
                return document
        except (OSError, ValueError, TypeError, KeyError):
            pass
        raise InputError(f"{path} is not a manifest that this version of vss2 wrote.")

    def _write(self) -> None:
        text = json.dumps(self._document, indent=1) + "\n"
        write_bytes(self.folder / MANIFEST, text.encode())

    def _make(self) -> None:
        """Make the folder and note which folders were missing."""
        missing = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Cannot write to {self.folder}: {error.strerror}.") from error
        self._made = missing[::-1]

    def _whole(self, document: Mapping[str, Any]) -> bool:
        """Whether nothing of a complete run was removed since."""
        names = document["identity"].get("outputs", [])
        return all(
            sum(1 for _ in (self.folder / name).iterdir()) == document["frames"]
            if name in PER_FRAME and (self.folder / name).is_dir()
            else (self.folder / name).is_file()
            for name in names
        )

    def _sweep(self) -> None:
        """Remove what a killed run left half written."""
        for place in [self.folder, *(self.folder / name for name in PER_FRAME)]:
            for leftover in [*place.glob(".*.tmp"), *place.glob(".*.partial-*")]:
                leftover.unlink(missing_ok=True)

    def _clear(self) -> None:
        """Remove an earlier run; the manifest last, so that a stop leaves no unknown results."""
        self._sweep()
        for name in PER_FRAME:
            if (self.folder / name).exists():
                shutil.rmtree(self.folder / name)
        for name in (*WHOLE, MANIFEST):
            (self.folder / name).unlink(missing_ok=True)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key} ")
        else:
            flat[prefix + key] = value
    return flat


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Each key that differs, with both values where they are short."""
    found = []
    for key in dict.fromkeys([*old, *new]):
        before, now = (json.dumps(d.get(key)) for d in (old, new))
        if before != now:
            short = len(before) <= 40 and len(now) <= 40
            found.append(f"{key} was {before}, is {now}" if short else f"another {key}")
    return found
