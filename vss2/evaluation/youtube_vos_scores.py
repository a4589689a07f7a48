"""J and F of YouTube-VOS (Xu et al., ECCV 2018): objects of seen and unseen categories apart.

The benchmark's own program is not public. Here an object counts in every annotated frame after the
one in which its mask is given, to the video's end, also where it is not visible.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from vss2.errors import InputError
from vss2.evaluation.confusion import id_map_pair
from vss2.evaluation.contours import MaskContour, tolerance_radius

ALL = ("J&F", "J", "F")
SPLIT = ("overall", "J_seen", "J_unseen", "F_seen", "F_unseen")


class ObjectScore(NamedTuple):
    """Means of one object over its annotated frames.

    Attributes:
        j, f: fractions.
        frames: how many frames.
    """

    j: float
    f: float
    frames: int


@dataclass
class _Track:
    """J and F of an object, frame by frame."""

    j: list[float] = field(default_factory=list)
    f: list[float] = field(default_factory=list)


class YouTubeVOSAccumulator:
    """J and F of the objects of any number of videos; shards of whole videos merge."""

    def __init__(self) -> None:
        self._videos: dict[str, dict[int, ObjectScore]] = {}
        self._open: dict[str, dict[int, _Track]] = {}

    @property
    def num_objects(self) -> int:
        """Objects of the finished videos that have an annotated frame."""
        return sum(len(objects) for objects in self._videos.values())

    def add(self, video: str, truth: Any, result: Any, frame: str) -> None:
        """Score the objects that have appeared, in the next annotated frame.

        Args:
            truth, result: (H, W) integer ids, numpy or torch.
            frame: how errors call it.

        Raises:
            InputError: sizes differ.
        """
        tracks = self._open.get(video)
        if not tracks:
            return
        where = f"video '{video}', frame {frame}"
        truth, result = id_map_pair(truth, result, where)
        radius = tolerance_radius(*truth.shape)
        for identity, track in tracks.items():
            g, s = (
                MaskContour((ids == identity).view(np.uint8), radius) for ids in (truth, result)
            )
            track.j.append(g.region_similarity(s))
            track.f.append(g.contour_accuracy(s))

    def appear(self, video: str, ids: Iterable[int]) -> None:
        """Begin with the objects whose masks are given in the frame that was just added."""
        tracks = self._open.setdefault(video, {})
        for identity in ids:
            tracks.setdefault(int(identity), _Track())

    def finish(self, video: str) -> None:
        """Close a video; objects without an annotated frame after their first are left out."""
        self._videos[video] = {
            identity: ObjectScore(float(np.mean(t.j)), float(np.mean(t.f)), len(t.j))
            for identity, t in sorted(self._open.pop(video, {}).items())
            if t.j
        }

    def state_dict(self) -> dict[str, dict[int, ObjectScore]]:
        """The finished videos."""
        return dict(self._videos)

    def merge(self, state: Mapping[str, Mapping[int, ObjectScore]]) -> None:
        """Add the finished videos of another accumulator."""
        for video, objects in state.items():
            self._videos[video] = {i: ObjectScore(*score) for i, score in objects.items()}

    def scores(
        self,
        categories: Mapping[str, Mapping[int, str]] | None = None,
        seen: Collection[str] = (),
    ) -> dict[str, Any]:
        """The scores of all finished videos.

        Args:
            categories: {video: {object id: category}}; None: seen and unseen are not told apart.
            seen: the categories that training videos have.

        Returns:
            Fractions: "J&F", "J", "F" over all objects; with `categories` also "J_seen",
            "J_unseen", "F_seen", "F_unseen", nan where there are no such objects, and "overall",
            the mean of these four; "per_object": {"<video>_<id>": {"J", "F", "frames"}}.

        Raises:
            InputError: no object was scored, or one has no category.
        """
        objects = {
            (video, identity): score
            for video in sorted(self._videos)
            for identity, score in self._videos[video].items()
        }
        if not objects:
            raise InputError("There is nothing to score: no object has an annotated frame.")
        j, f = _means(objects.values())
        result: dict[str, Any] = {"J&F": (j + f) / 2, "J": j, "F": f}
        if categories is not None:
            result |= _split_scores(objects, categories, seen)
        result["per_object"] = {
            f"{video}_{identity}": {"J": score.j, "F": score.f, "frames": score.frames}
            for (video, identity), score in objects.items()
        }
        return result


def _split_scores(
    objects: Mapping[tuple[str, int], ObjectScore],
    categories: Mapping[str, Mapping[int, str]],
    seen: Collection[str],
) -> dict[str, float]:
    """`SPLIT`."""
    parts: dict[bool, list[ObjectScore]] = {True: [], False: []}
    for (video, identity), score in objects.items():
        category = categories.get(video, {}).get(identity)
        if category is None:
            raise InputError(f"Object {identity} of video '{video}' has no category in meta.json.")
        parts[category in seen].append(score)
    (j_seen, f_seen), (j_unseen, f_unseen) = _means(parts[True]), _means(parts[False])
    values = (j_seen, j_unseen, f_seen, f_unseen)
    return dict(zip(SPLIT, (sum(values) / 4, *values), strict=True))


def _means(scores: Iterable[ObjectScore]) -> tuple[float, float]:
    """Mean J and F, nan of none."""
    rows = list(scores)
    if not rows:
        return math.nan, math.nan
    return (
        math.fsum(row.j for row in rows) / len(rows),
        math.fsum(row.f for row in rows) / len(rows),
    )
