"""What a check can find, and the report of a whole data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

from vss2.data import stray_labels

REPORT_FORMAT = 1


@dataclass(frozen=True)
class Kind:
    """A kind of fault: what it means, and whether it makes the check fail."""

    meaning: str
    error: bool = True


KINDS: dict[str, Kind] = {
    "image_empty": Kind("image of 0 bytes"),
    "image_truncated": Kind("image whose end is missing"),
    "image_unreadable": Kind("image that cannot be read or decoded"),
    "label_empty": Kind("label map of 0 bytes"),
    "label_truncated": Kind("label map whose end is missing"),
    "label_unreadable": Kind("label map that cannot be read or decoded"),
    "label_missing": Kind("frame without its label map"),
    "label_extra": Kind("label map without its frame"),
    "size_mismatch": Kind("image and label map, or frames of a video, of different sizes"),
    "label_colour_mask": Kind("label map stored as colours instead of ids"),
    "label_format": Kind("label map that is no 8-bit palette or grey image"),
    f"label_{stray_labels.OFF_BY_ONE}": Kind("ids out of range by one"),
    f"label_{stray_labels.ANTI_ALIASED}": Kind("ids out of range along edges: interpolated"),
    f"label_{stray_labels.UNKNOWN}": Kind("ids that the data set does not define"),
    "video_empty": Kind("video without frames"),
    "video_one_frame": Kind("video of a single frame"),
    "frame_order": Kind("frames whose order is not that of their numbers"),
    "video_duplicate": Kind("two videos with the same content"),
    "list_unknown": Kind("list entry without a video"),
    "list_duplicate": Kind("video listed twice, or in two splits"),
    "list_empty": Kind("list without videos"),
    "snippet_incomplete": Kind("snippet with missing frames"),
    "list_unlisted": Kind("video that no list names", error=False),
}


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        kind: key of `KINDS`.
        message: one sentence.
        video: video id, "" where the fault belongs to none.
        file: the file or folder, "" where there is none.
    """

    kind: str
    message: str
    video: str = ""
    file: str = ""

    @property
    def is_error(self) -> bool:
        return KINDS[self.kind].error


@dataclass
class Report:
    """The result of a check.

    Attributes:
        name: of the data set or folder.
        findings: sorted by kind (in the order of `KINDS`), video and file.
        videos, frames, masks: how many were looked at.
        seconds: how long it took.
    """

    name: str
    findings: list[Finding] = field(default_factory=list)
    videos: int = 0
    frames: int = 0
    masks: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        order = {kind: index for index, kind in enumerate(KINDS)}
        self.findings.sort(key=lambda f: (order[f.kind], f.video, f.file, f.message))

    @property
    def errors(self) -> int:
        """Number of findings that make the check fail."""
        return sum(finding.is_error for finding in self.findings)

    def counts(self) -> dict[str, int]:
        """Findings per kind, those that occur, in the order of `KINDS`."""
        counted = Counter(finding.kind for finding in self.findings)
        return {kind: counted[kind] for kind in KINDS if counted[kind]}

    def as_dict(self) -> dict[str, Any]:
        """The whole report, for JSON."""
        return {
            "format": REPORT_FORMAT,
            "name": self.name,
            "videos": self.videos,
            "frames": self.frames,
            "masks": self.masks,
            "seconds": round(self.seconds, 3),
            "masks_per_second": round(self.masks / max(self.seconds, 1e-9), 1),
            "errors": self.errors,
            "warnings": len(self.findings) - self.errors,
            "counts": self.counts(),
            "findings": [
                {
                    "kind": finding.kind,
                    "severity": "error" if finding.is_error else "warning",
                    "video": finding.video,
                    "file": finding.file,
                    "message": finding.message,
                }
                for finding in self.findings
            ],
        }

    def table(self, per_kind: int = 5) -> str:
        """The report as text: a table of kinds, then up to `per_kind` findings of each."""
        head = (
            f"{self.name}: {self.videos} videos, {self.frames} frames, {self.masks} label maps "
            f"in {self.seconds:.1f} s ({self.masks / max(self.seconds, 1e-9):.0f} label maps/s)"
        )
        counts = self.counts()
        if not counts:
            return f"{head}\nNothing is wrong."
        rows = [
            [kind, "error" if KINDS[kind].error else "warning", count, KINDS[kind].meaning]
            for kind, count in counts.items()
        ]
        parts = [head, tabulate(rows, headers=["kind", "severity", "count", "meaning"])]
        for kind, count in counts.items():
            found = (finding for finding in self.findings if finding.kind == kind)
            parts.append("\n".join([f"{kind}:", *_lines(found, count, per_kind)]))
        return "\n\n".join(parts)


def _lines(findings: Iterable[Finding], count: int, limit: int) -> Iterable[str]:
    for finding, _ in zip(findings, range(limit), strict=False):
        yield f"  {finding.message}"
    if count > limit:
        yield f"  and {count - limit} more"
