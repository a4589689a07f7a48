"""Loaders: an endless resumable one for training, one in frame order for evaluation.

Training is a function of (seed, position): position p of the endless stream of shuffled passes
fixes the video, and a generator keyed by (seed, p, try) makes everything random in its sample.
So order and content are the same for any number of workers and after a resume.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vss2.d2.data import DatasetFromList, build_batch_data_loader
from vss2.d2.utils import comm
from vss2.data.samplers import PositionSampler
from vss2.errors import InputError

logger = logging.getLogger(__name__)

VideoDict = dict[str, Any]

MAX_TRIES = 20


def _own_threads_only() -> None:
    """In a worker process, keep OpenCV from starting threads of its own (they oversubscribe)."""
    if get_worker_info() is not None:
        cv2.setNumThreads(0)


def _plain(error: InputError) -> InputError:
    """The error that a worker raised, without the traceback that torch prepends to its text."""
    lines = str(error).strip().splitlines()
    if len(lines) < 2 or not lines[0].startswith("Caught "):
        return error
    # Its frames hold the loader's iterator; dropped now, the workers end now and in order. Left to
    # the garbage collector, each of them would wait five seconds for a queue that is gone.
    error.__traceback__ = None
    return type(error)(lines[-1].partition(": ")[2] or lines[-1])


class Skipped(NamedTuple):
    """A clip that could not be made.

    Attributes:
        video_id: its video.
        reason: the error's sentence, which names the file.
    """

    video_id: str
    reason: str


class _Drawn(NamedTuple):
    """A sample and what was passed over before it; workers hand this to the main process."""

    sample: Any
    skipped: list[Skipped]


class _Packed(NamedTuple):
    """Label ids on their way between processes, as uint8."""

    ids: torch.Tensor


def _packed(sample: Any) -> Any:
    """In a worker, the sample with `sem_seg` in an eighth of the memory, where its ids allow.

    Everything that a worker hands over lies in shared memory that is made, filled and mapped anew
    for each sample: for int64 labels that costs as much as augmenting them.
    """
    labels = sample.get("sem_seg") if isinstance(sample, dict) else None
    if get_worker_info() is None or getattr(labels, "dtype", None) != torch.int64:
        return sample
    assert labels is not None
    if labels.numel() == 0 or labels.min() < 0 or labels.max() > 255:
        return sample
    return {**sample, "sem_seg": _Packed(labels.to(torch.uint8))}


def _unpacked(sample: Any) -> Any:
    """The sample that was packed."""
    if isinstance(sample, dict) and isinstance(sample.get("sem_seg"), _Packed):
        return {**sample, "sem_seg": sample["sem_seg"].ids.long()}
    return sample


class ClipDataset(Dataset[Any]):
    """Samples by (position, index): the mapper's result with the position's own generator.

    A mapper whose `uses_position` is true is called with (video, generator, position). One that
    returns None refuses the video; another is then drawn, from a generator keyed by the next
    try. With `on_error="skip"` a clip that cannot be read is passed over in the same way, and a
    sample comes as `_Drawn`; else its error is raised.
    """

    def __init__(
        self,
        videos: Sequence[VideoDict],
        mapper: Callable[..., Any],
        seed: int,
        on_error: str = "error",
    ) -> None:
        self.videos = videos
        self.mapper = mapper
        self.seed = seed
        self.skips = on_error == "skip"

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, item: tuple[int, int]) -> Any:
        _own_threads_only()
        position, index = item
        skipped: list[Skipped] = []
        for attempt in range(MAX_TRIES):
            rng = np.random.default_rng((self.seed, position, attempt))
            if attempt:
                index = int(rng.integers(len(self.videos)))
            video = self.videos[index]
            try:
                sample = self._sample(video, rng, position)
            except InputError as error:
                if not self.skips:
                    raise
                skipped.append(Skipped(str(video["video_id"]), str(error)))
                continue
            if sample is not None:
                sample = _packed(sample)
                return _Drawn(sample, skipped) if self.skips else sample
        if skipped:
            raise InputError(
                f"{MAX_TRIES} clips in a row could not be used at position {position}; the last "
                f"fault: {skipped[-1].reason}"
            )
        raise InputError(f"The mapper refused {MAX_TRIES} videos in a row at position {position}.")

    def _sample(self, video: VideoDict, rng: np.random.Generator, position: int) -> Any:
        if getattr(self.mapper, "uses_position", False):
            return self.mapper(video, rng, position)
        return self.mapper(video, rng)


class TrainLoader:
    """Endless iterable of training batches (lists of samples) that can be resumed.

    A fresh iterator continues after the last batch that was handed out. `batches` counts those;
    what workers have prefetched does not count.

    Args:
        videos: video dicts.
        mapper: (video dict, generator) -> sample.
        total_batch_size: over all ranks.
        num_workers: worker processes of this rank.
        seed: of order and content, the same on all ranks.
        prefetch_factor: batches that each worker prepares ahead.
        pin_memory: copy samples to pinned memory.
        on_error: "error" or "skip": whether a clip that cannot be read ends the run or another
            one is drawn in its place.

    Attributes:
        items: what is drawn from: the videos.
        epoch_length: of a pass over them.
        batches: handed out so far, since position `first` of the stream.
        skipped: how often each fault was met in the batches handed out; empty unless on_error is
            "skip". Counted by this process since it started.
    """

    def __init__(
        self,
        videos: Sequence[VideoDict],
        mapper: Callable[..., Any],
        total_batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        prefetch_factor: int = 2,
        pin_memory: bool = False,
        on_error: str = "error",
    ) -> None:
        # Serialised once, so that workers share its memory.
        self.videos = DatasetFromList(list(videos), copy=False)
        self.items: Sequence[VideoDict] = self.videos
        self.epoch_length = len(self.videos)
        self.mapper = mapper
        self.total_batch_size = total_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.prefetch_factor = prefetch_factor
        self.pin_memory = pin_memory
        self.on_error = on_error
        self.batches = 0
        self.first = 0
        self.skipped: Counter[Skipped] = Counter()

    def _sampler(self, start: int, rank: int, world_size: int) -> PositionSampler:
        return PositionSampler(len(self.items), self.seed, start, rank, world_size)

    def _loader(self) -> DataLoader:
        """A loader that starts at the stored position."""
        rank, world_size = comm.get_rank(), comm.get_world_size()
        start = self.first + self.batches * self.total_batch_size
        return build_batch_data_loader(
            ClipDataset(self.items, self.mapper, self.seed, self.on_error),
            self._sampler(start, rank, world_size),
            self.total_batch_size,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor,
            pin_memory=self.pin_memory,
            # Gives the loader a generator of its own, so that making an iterator does not draw
            # from torch's global one; the samples do not depend on it.
            seed=self.seed + rank,
        )

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        try:
            for batch in self._loader():
                self.batches += 1
                samples = self._unwrapped(batch) if self.on_error == "skip" else batch
                yield [_unpacked(sample) for sample in samples]
        except InputError as error:
            raise _plain(error) from None

    def _unwrapped(self, batch: list[_Drawn]) -> list[Any]:
        """The samples of a batch; logs each fault when it is met for the first time."""
        for drawn in batch:
            for video_id, reason in drawn.skipped:
                fault = Skipped(video_id, reason)
                self.skipped[fault] += 1
                if self.skipped[fault] == 1:
                    logger.warning(
                        "Passed over a clip of video %r: %s (%d clips passed over so far, %d "
                        "different faults)",
                        video_id,
                        reason,
                        self.skipped.total(),
                        len(self.skipped),
                    )
        return [drawn.sample for drawn in batch]

    def state_dict(self) -> dict[str, int]:
        """Seed and number of batches handed out, and since which position if not since 0."""
        state = {"seed": self.seed, "batches": self.batches}
        return {**state, "first": self.first} if self.first else state

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue another loader's stream; iterators that exist already are not moved.

        Raises:
            InputError: a key is missing.
        """
        missing = {"seed", "batches"} - set(state)
        if missing:
            raise InputError(f"The state of the training loader lacks {sorted(missing)}.")
        if int(state["seed"]) != self.seed:
            logger.info(
                "The training data continue with the stored seed %s, not %s.",
                state["seed"],
                self.seed,
            )
        self.seed = int(state["seed"])
        self.batches = int(state["batches"])
        self.first = int(state.get("first", 0))

    def restart_epoch(self, total_batch_size: int) -> None:
        """Go back to the start of the pass over the items that the stream is in.

        Args:
            total_batch_size: of the batches handed out so far, where it was another one.
        """
        position = self.first + self.batches * total_batch_size
        self.first = position // self.epoch_length * self.epoch_length
        self.batches = 0


def frame_dicts(video: VideoDict) -> list[dict[str, Any]]:
    """A video's frames in order, each with `video_id`, `first_frame` and `last_frame`."""
    last = len(video["frames"]) - 1
    return [
        {
            **frame,
            "video_id": video["video_id"],
            "first_frame": position == 0,
            "last_frame": position == last,
        }
        for position, frame in enumerate(video["frames"])
    ]


class FrameDataset(Dataset[dict[str, Any]]):
    """Evaluation items, one per frame, over all videos one after the other."""

    def __init__(self, videos: Sequence[VideoDict], mapper: Callable[[dict[str, Any]], Any]):
        self.frames = DatasetFromList([f for v in videos for f in frame_dicts(v)], copy=False)
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        _own_threads_only()
        return self.mapper(self.frames[index])


class EvaluationLoader(DataLoader):
    """A DataLoader whose worker errors are as short as those of the main process."""

    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except InputError as error:
            raise _plain(error) from None
