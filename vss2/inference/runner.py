"""A whole prediction run: read ahead, network, write behind; with resume and a clean stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from vss2.data.frame_sources import FrameSource
from vss2.errors import InputError
from vss2.inference.pipeline import Background, Prefetch
from vss2.inference.predictor import Prediction, PredictionStream, VideoPredictor
from vss2.inference.results import ResultWriter

QUEUE = 4  # frames between reader and network, and between network and each writer


class Stopped(KeyboardInterrupt):
    """The run was asked to stop before its end; what it wrote is whole."""


@dataclass
class RunReport:
    """What a run did and where its time went.

    Attributes:
        frames: frames with results.
        kept: of them, those whose results an earlier, stopped run had written.
        seconds: of the whole run.
        waited_for_frames: seconds in which the network stood still because no frame was there.
        waited_for_writers: seconds in which it stood still because the writers' queues were full.
    """

    frames: int = 0
    kept: int = 0
    seconds: float = 0.0
    waited_for_frames: float = 0.0
    waited_for_writers: float = 0.0


@dataclass(frozen=True)
class Selection:
    """Which frames of a source have results: the indices of range(start, end, every)."""

    start: int = 0
    end: int | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.start < 0 or self.every < 1 or (self.end is not None and self.end <= self.start):
            raise InputError(
                "Frames are chosen with 0 <= start < end and every >= 1, got "
                f"start={self.start}, end={self.end}, every={self.every}."
            )

    def check(self, source: FrameSource) -> None:
        """Raise InputError where the source is known to have none of these frames."""
        if source.num_frames is not None and self.start >= source.num_frames:
            raise InputError(
                f"{source.path} has {source.num_frames} frames: none is left from "
                f"frame {self.start} on."
            )

    def has(self, index: int) -> bool:
        """Whether frame `index`, at or after the start, is chosen."""
        return (index - self.start) % self.every == 0


class _Job(NamedTuple):
    """A frame and what is to be done with it."""

    frame_index: int
    name: str
    frame: np.ndarray
    image: torch.Tensor | None  # None: the session does not see it
    mask: torch.Tensor | None  # given for this frame
    wanted: bool  # the session answers it
    stored: bool  # its results are there already


def first_missing(source: FrameSource, writer: ResultWriter, selection: Selection) -> int:
    """Index of the first chosen frame whose files are not all there, or one past the last."""
    index = selection.start
    while selection.end is None or index < selection.end:
        name = source.name(index)
        if name is None or not writer.has(name):
            break
        index += selection.every
    return index


def _jobs(
    source: FrameSource,
    predictor: VideoPredictor,
    stream: PredictionStream,
    selection: Selection,
    begin: int,
) -> Generator[_Job, None, None]:
    """The frames that are needed, in order; results of those before `begin` are there."""
    # Positions count from the start: there the session's video begins.
    seen_from = selection.start + stream.first_needed(begin - selection.start)
    step = selection.every if stream.independent else 1
    for index, name, frame in source.frames(selection.start, selection.end, step):
        chosen = selection.has(index)
        stored = chosen and index < begin
        image = mask = None
        if index >= seen_from:
            image, mask = predictor.prepare(frame), predictor.mask(index, name, frame)
        if stored or image is not None:
            yield _Job(index, name, frame, image, mask, chosen and not stored, stored)


def run(
    predictor: VideoPredictor,
    source: FrameSource,
    writer: ResultWriter,
    selection: Selection | None = None,
    *,
    resume: bool = False,
    overlap: bool = True,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[], object] = lambda: None,
) -> RunReport:
    """Predict a source's frames and write their results.

    With a session that looks at several frames, all frames from `selection.start` on are seen,
    chosen or not, and a resumed run lets the session see again what its next answers depend on:
    labels are those of one run over all frames.

    Args:
        resume: go on after the frames whose files are there.
        overlap: read and write in threads beside the network; results are the same.
        stop: asked before each frame. A live source then ends as at its natural end.
        progress: called for each frame with results.

    Raises:
        Stopped: `stop` said so; files of all frames before are written, videos are not.
        InputError: of source, predictor or writer; no frame was there.
    """
    selection = selection or Selection()
    selection.check(source)
    stream = predictor.open()
    begin = first_missing(source, writer, selection) if resume else selection.start
    jobs = _jobs(source, predictor, stream, selection, begin)
    report = RunReport()
    began = time.perf_counter()
    # Scores are large: one frame of them waits at a time.
    depth = 1 if predictor.scores_stride else QUEUE
    with writer, _Writers(writer, depth if overlap else 0) as writers, ExitStack() as stack:
        todo: Iterator[_Job] = stack.enter_context(closing(jobs)) if not overlap else iter(())
        prefetch = stack.enter_context(Prefetch(jobs, depth, stop)) if overlap else None
        if prefetch is not None:
            todo = iter(prefetch)

        def put(prediction: Prediction, stored: bool = False) -> None:
            writers.put(prediction, stored)
            report.frames += 1
            report.kept += stored
            progress()

        stopped = _loop(todo, stream, writer, put, stop)
        if not stopped or source.live:
            for prediction in stream.finish():
                put(prediction)
        writers.finish()
        if stopped and not source.live:
            raise Stopped(f"stopped after {report.frames} frames")
        if report.frames == 0:
            raise InputError(f"{source.path} has no frame from frame {selection.start} on.")
        report.waited_for_frames = prefetch.waited if prefetch is not None else 0.0
        report.waited_for_writers = writers.waited
    report.seconds = time.perf_counter() - began
    return report


def _loop(
    jobs: Iterator[_Job],
    stream: PredictionStream,
    writer: ResultWriter,
    put: Callable[..., None],
    stop: Callable[[], bool],
) -> bool:
    """The plain loop over the frames; returns whether it was stopped."""
    while not stop():
        job = next(jobs, None)
        if job is None:
            return stop()
        if job.stored:
            labels = writer.stored_labels(job.name, job.frame)
            put(Prediction(job.name, job.frame, labels, job.frame_index), stored=True)
        if job.image is not None:
            prediction = stream.step(
                job.frame_index, job.name, job.frame, job.image, job.mask, job.wanted
            )
            if prediction is not None:
                put(prediction)
    return True


class _Writers:
    """A thread for the frames' files and one for the pictures, or neither.

    Args:
        depth: predictions that wait for each thread at most; 0 writes in the caller's thread.
    """

    def __init__(self, writer: ResultWriter, depth: int):
        self._writer = writer
        self._files = Background(writer.add_files, depth) if depth else None
        self._pictures = Background(writer.add_pictures, depth) if depth else None
        self._threads = [t for t in (self._files, self._pictures) if t is not None]

    @property
    def waited(self) -> float:
        """Seconds that `put` blocked."""
        return sum(thread.waited for thread in self._threads)

    def put(self, prediction: Prediction, stored: bool = False) -> None:
        """Write a prediction; where its files are `stored`, only to the pictures."""
        if self._files is None or self._pictures is None:
            if not stored:
                self._writer.add_files(prediction)
            self._writer.add_pictures(prediction)
            return
        if not stored:
            self._files.put(prediction)
        self._pictures.put(prediction)

    def finish(self) -> None:
        """Wait until everything is written; raises what went wrong."""
        for thread in self._threads:
            thread.close()
        for thread in self._threads:
            thread.check()

    def __enter__(self) -> _Writers:
        return self

    def __exit__(self, kind, error, trace) -> None:
        hurry = kind is not None and issubclass(kind, KeyboardInterrupt)
        for thread in self._threads:
            thread.close(drop=hurry)
