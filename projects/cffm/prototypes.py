"""Prototypes of videos on disk, as CFFM++ was published with them.

A folder, or a zip of one, holds `<video>/centers.pt`: a bare float tensor [1, P, C], possibly saved
from a GPU.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from vss2.errors import InputError, InputFileError, did_you_mean

CENTERS = "centers.pt"


class PrototypeStore:
    """Prototypes by video.

    Args:
        path: the folder, or a .zip whose members end in `<video>/centers.pt`; for a single video
            also its own folder, which holds centers.pt itself.
        parts: fall back to the release's other form: where a video has no centers.pt, all its *.pt
            files are joined and a random `keep` of the rows serve, drawn anew at each reading.
        keep: share of the rows that the fall-back keeps.
        seed: of the fall-back's draws.
    """

    def __init__(
        self, path: str | os.PathLike[str], parts: bool = False, keep: float = 0.8, seed: int = 0
    ):
        if not 0.0 < keep <= 1.0:
            raise InputError(f"PrototypeStore.keep lies in (0, 1], got {keep}")
        self.path = Path(path)
        self.parts = parts
        self.keep = keep
        self._rng = np.random.default_rng(seed)
        self._members: dict[str, list[str]] | None = None

    def __getitem__(self, video: str) -> torch.Tensor:
        """Prototypes [P, C] of a video, float32 on the CPU.

        Raises:
            InputFileError: the folder or zip does not exist.
            InputError: the video has no prototypes here, or they are no such tensor.
        """
        files = self._files(video)
        centers = [name for name in files if name.endswith(CENTERS)]
        if centers:
            return self._read(centers[0])
        if not (self.parts and files):
            kind = "prototypes" if self.parts else CENTERS
            raise InputError(
                f"video {video!r} has no {kind} in {self.path}.{did_you_mean(video, self.videos())}"
                " The command 'vss2 cffm prototypes' makes them"
            )
        rows = torch.cat([self._read(name) for name in files])
        count = max(1, int(self.keep * len(rows)))
        chosen = np.sort(self._rng.permutation(len(rows))[:count])
        return rows[torch.from_numpy(chosen)]

    def only(self) -> torch.Tensor:
        """The prototypes [P, C] of the one video that is here.

        Raises:
            InputFileError, InputError: as for a video by name; there are several, or none.
        """
        if not self._zipped() and (self.path / CENTERS).is_file():
            return self._read(str(self.path / CENTERS))
        videos = self.videos()
        if len(videos) != 1:
            raise InputError(
                f"{self.path} holds the prototypes of {len(videos)} videos and nothing says which "
                f"one this is: set model.prototypes to the folder with its {CENTERS}, "
                "or to online"
            )
        return self[videos[0]]

    def videos(self) -> list[str]:
        """Names of the videos that are here."""
        if self._zipped():
            return sorted(self._index())
        return sorted(p.name for p in self.path.iterdir() if p.is_dir())

    def _zipped(self) -> bool:
        if not self.path.exists():
            raise InputFileError(
                f"prototypes {self.path} do not exist; expected a folder with "
                f"<video>/{CENTERS}, or a zip of one. The command 'vss2 cffm prototypes' makes it; "
                "a stream does without by model.prototypes=online"
            )
        if self.path.is_dir():
            return False
        if not zipfile.is_zipfile(self.path):
            raise InputError(f"prototypes {self.path} are neither a folder nor a zip")
        return True

    def _index(self) -> dict[str, list[str]]:
        if self._members is None:
            self._members = {}
            with zipfile.ZipFile(self.path) as archive:
                for name in sorted(archive.namelist()):
                    member = PurePosixPath(name)
                    if member.suffix == ".pt" and "__MACOSX" not in member.parts:
                        self._members.setdefault(member.parent.name, []).append(name)
        return self._members

    def _files(self, video: str) -> list[str]:
        if self._zipped():
            return self._index().get(video, [])
        return sorted(str(p) for p in (self.path / video).glob("*.pt"))

    def _read(self, name: str) -> torch.Tensor:
        where = f"{self.path}:{name}" if self._zipped() else name
        try:
            if self._zipped():
                with zipfile.ZipFile(self.path) as archive:
                    content = archive.read(name)
            else:
                content = Path(name).read_bytes()
            value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as e:  # a damaged file can fail in any part of the unpickler
            raise InputError(f"cannot read prototypes {where}: {str(e).splitlines()[0]}") from e
        if not isinstance(value, torch.Tensor) or value.ndim != 3 or value.shape[0] != 1:
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise InputError(f"prototypes {where} are a tensor (1, P, C), got {shape}")
        return value[0].float()
