"""J and F of video object segmentation as the DAVIS benchmarks (2016, 2017) score sequences."""

from __future__ import annotations

import math
import multiprocessing
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from vss2.errors import InputError
from vss2.evaluation.confusion import id_map_pair
from vss2.evaluation.contours import MaskContour, tolerance_radius

VOID = 255
MAX_PROPOSALS = 20
STATISTICS = ("J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
METRICS = ("J&F-Mean", *STATISTICS)


class SequenceScores(NamedTuple):
    """J and F of one finished sequence.

    Attributes:
        j, f: float64 (K, n), of each object in each evaluated frame.
    """

    j: np.ndarray
    f: np.ndarray


def mean_recall_decay(values: np.ndarray) -> tuple[float, float, float]:
    """Statistics of one object over its n evaluated frames, float64 (n,).

    Recall is the share of frames above one half. Decay is the mean over the first quarter of the
    frames less that over the last one; neighbouring quarters share the frame at their edge, and
    edges between two frames go up.
    """
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    return (
        float(np.mean(values)),
        float(np.mean(values > 0.5)),
        float(np.mean(first) - np.mean(last)),
    )


class _Sequence(ABC):
    """A sequence whose frames still come, in order.

    Args:
        name: for errors.
        first: the first annotation; its highest id is the number of objects.
    """

    def __init__(self, name: str, first: np.ndarray):
        self.name = name
        self.num_objects = int(self.objects(first).max())
        if self.num_objects == 0:
            raise InputError(
                f"The first annotation of sequence '{name}' holds no object: is it the right file?"
            )
        self.frames = 0
        self._j: list[np.ndarray] = []
        self._f: list[np.ndarray] = []

    @staticmethod
    def objects(annotation: np.ndarray) -> np.ndarray:
        """Object ids of an annotation: void is background."""
        return cv2.threshold(annotation, VOID - 1, 0, cv2.THRESH_TOZERO_INV)[1]

    @abstractmethod
    def add(self, truth: np.ndarray, result: np.ndarray, where: str) -> None:
        """Score the next frame: two uint8 maps (H, W) of one size."""

    @abstractmethod
    def finish(self) -> SequenceScores:
        """The scores of the whole sequence."""

    def _compare(self, truths: Sequence[MaskContour], results: Sequence[MaskContour]) -> None:
        """Keep J and F of each result with the annotation of its own object."""
        pairs = list(zip(truths, results, strict=True))
        self._j.append(np.array([g.region_similarity(s) for g, s in pairs]))
        self._f.append(np.array([g.contour_accuracy(s) for g, s in pairs]))


class _SemiSupervised(_Sequence):
    """Result ids are the annotation's; the first and the last frame do not count."""

    def __init__(self, name: str, first: np.ndarray):
        super().__init__(name, first)
        self._problem: str | None = None  # of the newest frame, which may be the last one

    def add(self, truth: np.ndarray, result: np.ndarray, where: str) -> None:
        if self._problem is not None:
            raise InputError(self._problem)
        self.frames += 1
        if self.frames == 1:
            return
        truth, result = self.objects(truth), self.results(result)
        highest = int(result.max())
        if highest > self.num_objects:
            self._problem = (
                f"The result of {where} holds id {highest}, but the first annotation of the "
                f"sequence has the ids 1..{self.num_objects}."
            )
        ids = range(1, self.num_objects + 1)
        self._compare(_contours(truth, ids), _contours(result, ids))

    @staticmethod
    def results(result: np.ndarray) -> np.ndarray:
        """Object ids of a result."""
        return result

    def finish(self) -> SequenceScores:
        if self.frames < 3:
            raise InputError(
                f"Sequence '{self.name}' has {self.frames} annotated frames: as the first and the "
                f"last one are not scored, at least 3 are needed."
            )
        return SequenceScores(np.stack(self._j[:-1], axis=1), np.stack(self._f[:-1], axis=1))


class _SingleObject(_SemiSupervised):
    """DAVIS 2016: whatever is not 0 is the object, in annotations and results."""

    @staticmethod
    def objects(annotation: np.ndarray) -> np.ndarray:
        return (annotation != 0).astype(np.uint8)

    @staticmethod
    def results(result: np.ndarray) -> np.ndarray:
        return (result != 0).astype(np.uint8)


class _Unsupervised(_Sequence):
    """Result ids are proposals, matched to the objects at the end; void counts for nothing."""

    def add(self, truth: np.ndarray, result: np.ndarray, where: str) -> None:
        highest = int(result.max())
        if highest > MAX_PROPOSALS:
            raise InputError(
                f"The result of {where} holds id {highest}; at most {MAX_PROPOSALS} proposals, "
                f"ids 1..{MAX_PROPOSALS}, may be made."
            )
        truths = _contours(self.objects(truth), range(1, self.num_objects + 1))
        # Id 0 stands for proposals that this frame lacks: an empty mask.
        result = np.where(truth == VOID, np.uint8(0), result)
        results = _contours(result, range(1, highest + 1))
        results.insert(0, MaskContour(np.zeros_like(result), 1))
        self._j.append(np.array([[g.region_similarity(s) for g in truths] for s in results]))
        self._f.append(np.array([[g.contour_accuracy(s) for g in truths] for s in results]))
        self.frames += 1

    def finish(self) -> SequenceScores:
        number = max(self.num_objects, *(len(rows) - 1 for rows in self._j))
        # A proposal that a frame lacks is compared as the empty mask.
        j, f = (
            np.stack(
                [rows[[p if p < len(rows) else 0 for p in range(1, number + 1)]] for rows in kept],
                axis=-1,
            )
            for kept in (self._j, self._f)
        )
        quality = (j.mean(axis=-1) + f.mean(axis=-1)) / 2
        proposal, matched = linear_sum_assignment(quality, maximize=True)
        return SequenceScores(j[proposal, matched], f[proposal, matched])


_TASKS: dict[str, type[_Sequence]] = {
    "semi-supervised": _SemiSupervised,
    "unsupervised": _Unsupervised,
    "davis-2016": _SingleObject,
}
TASKS = tuple(_TASKS)


def _contours(ids: np.ndarray, wanted: Iterable[int]) -> list[MaskContour]:
    """The masks of the wanted ids of a map (H, W)."""
    radius = tolerance_radius(*ids.shape)
    return [MaskContour((ids == k).view(np.uint8), radius) for k in wanted]


class DAVISAccumulator:
    """J and F per object and frame of any number of sequences: two numbers each, no pictures.

    Frames of one sequence come in order; sequences may be interleaved. Shards of whole sequences
    merge to results that equal those of one pass in every bit, whatever the shards.

    Args:
        task: see `score_davis`.
    """

    def __init__(self, task: str = "semi-supervised") -> None:
        if task not in TASKS:
            raise InputError(f"The task is one of {', '.join(TASKS)}, got {task!r}.")
        self.task = task
        self._sequences: dict[str, SequenceScores] = {}
        self._open: dict[str, _Sequence] = {}

    @property
    def sequences(self) -> list[str]:
        """Names of the finished sequences, sorted."""
        return sorted(self._sequences)

    @property
    def num_frames(self) -> int:
        """Evaluated frames of the finished sequences."""
        return sum(scores.j.shape[1] for scores in self._sequences.values())

    def add(self, name: str, truth: Any, result: Any, frame: int | str | None = None) -> None:
        """Score the next frame of a sequence.

        Args:
            truth: (H, W) integer ids as annotated, numpy or torch.
            result: (H, W) integer ids.
            frame: how errors call the frame; default its number.

        Raises:
            InputError: sizes differ, the first annotation is empty, an id is too high, or the
                sequence is finished.
        """
        if name in self._sequences:
            raise InputError(f"Sequence '{name}' was already complete when it came again.")
        sequence = self._open.get(name)
        number = sequence.frames if sequence is not None else 0
        where = f"sequence '{name}', frame {number if frame is None else frame}"
        truth, result = id_map_pair(truth, result, where)
        if sequence is None:
            sequence = self._open[name] = _TASKS[self.task](name, truth)
        sequence.add(truth, result, where)

    def finish(self, name: str) -> None:
        """Close a sequence.

        Raises:
            InputError: it has too few frames.
        """
        self._sequences[name] = self._open.pop(name).finish()

    def discard(self, name: str) -> None:
        """Forget a sequence that is not finished, if there is one of that name."""
        self._open.pop(name, None)

    def state_dict(self) -> dict[str, SequenceScores]:
        """The finished sequences."""
        return dict(self._sequences)

    def merge(self, state: Mapping[str, SequenceScores]) -> None:
        """Add the finished sequences of another accumulator.

        Raises:
            InputError: a sequence is in both.
        """
        for name, scores in state.items():
            if name in self._sequences:
                raise InputError(f"Sequence '{name}' was scored twice.")
            self._sequences[name] = SequenceScores(*scores)

    def scores(self) -> dict[str, Any]:
        """The scores of all finished sequences; see `score_davis` for the keys.

        Raises:
            InputError: no sequence was scored.
        """
        if not self._sequences:
            raise InputError("There is nothing to score: no annotated sequence came.")
        per_object, per_sequence = {}, {}
        for name, scores in self._sequences.items():
            rows = {
                f"{name}_{k}": _statistics(*pair)
                for k, pair in enumerate(zip(*scores, strict=True), 1)
            }
            per_object.update(rows)
            per_sequence[name] = mean_scores(rows.values())
        return {
            **mean_scores(per_object.values()),
            "per_object": per_object,
            "per_sequence": per_sequence,
        }


def _statistics(j: np.ndarray, f: np.ndarray) -> dict[str, float]:
    """`STATISTICS` of one object from its J and F, float64 (n,)."""
    return dict(zip(STATISTICS, mean_recall_decay(j) + mean_recall_decay(f), strict=True))


def mean_scores(objects: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """`METRICS` of some objects: the plain mean over them."""
    rows = list(objects)
    means = {key: math.fsum(row[key] for row in rows) / len(rows) for key in STATISTICS}
    return {"J&F-Mean": (means["J-Mean"] + means["F-Mean"]) / 2, **means}


def score_davis(
    sequences: Iterable[tuple[str, Sequence[Any], Sequence[Any]]],
    task: str = "semi-supervised",
    num_workers: int = 0,
) -> dict[str, Any]:
    """Score results of video object segmentation as the official DAVIS toolkit does.

    Args:
        sequences: iterable of (name, annotations, results), each a (T, H, W) array of integer ids
            or anything with a length that gives (H, W) maps by index; integer numpy or torch.
            Sizes may differ between sequences.
        task: "semi-supervised" (DAVIS 2017 val, train): result ids are the annotation's, the
            highest id of the first annotation is the number of objects, 255 in annotations is
            background, the first and the last frame do not count. "unsupervised": result ids are
            up to 20 proposals, which are matched to the objects; all frames count, 255 in
            annotations counts for nothing. "davis-2016": as semi-supervised, but whatever is not
            0 is one object.
        num_workers: processes that share the sequences; 0 scores them in this one.

    Returns:
        Fractions: "J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay",
        means over all objects of all sequences; "per_object": {"<name>_<k>": the same but the
        first}; "per_sequence": {name: means over its objects}. In the unsupervised task k counts
        the matched proposals in ascending order.

    Raises:
        InputError: an unknown task, no sequences, a name that comes twice, lengths or sizes that
            differ, a sequence that is too short or has no object, or an id that is too high.
    """
    scores = DAVISAccumulator(task)
    for done in _scored(((task, *sequence) for sequence in sequences), num_workers):
        scores.merge(done)
    return scores.scores()


def _score_sequence(
    task: str, name: str, truths: Sequence[Any], results: Sequence[Any]
) -> dict[str, SequenceScores]:
    """The state of an accumulator that saw one sequence."""
    if len(truths) != len(results):
        raise InputError(
            f"Sequence '{name}' has {len(truths)} annotations and {len(results)} results."
        )
    if len(truths) == 0:
        raise InputError(f"Sequence '{name}' has no frames.")
    scores = DAVISAccumulator(task)
    for index in range(len(truths)):
        scores.add(name, truths[index], results[index])
    scores.finish(name)
    return scores.state_dict()


def _scored(
    tasks: Iterable[tuple[str, str, Sequence[Any], Sequence[Any]]], num_workers: int
) -> Iterator[dict[str, SequenceScores]]:
    """`_score_sequence` of each task, in order; few sequences wait for a worker at a time."""
    if num_workers < 0:
        raise InputError(f"The number of workers must be >= 0, got {num_workers}.")
    if num_workers == 0:
        for task in tasks:
            yield _score_sequence(*task)
        return
    # Forked workers need not import anything; elsewhere forking is not safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(num_workers, context, cv2.setNumThreads, (0,))
    waiting: deque[Future[dict[str, SequenceScores]]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(_score_sequence, *task))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
