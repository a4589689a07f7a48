"""Speed of streaming sessions: latency per frame, share of each stage, one model against another.

All times are those of one frame at a time, as a stream sees it. What runs ahead or side by side in
a real pipeline (reading the next frame, writing the last one) is not overlapped here, so that
each stage has a time of its own.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from vss2.data.image_io import write_image, write_label
from vss2.errors import InputError
from vss2.modeling.meta_arch import VideoMaskPropagator, VideoSegmentor

STAGES = ("reading", "encode", "decode", "resize", "other", "writing")
# "memory" is what mask propagation reads from its memory and adds to it.
PROPAGATION_STAGES = ("reading", "encode", "memory", "decode", "resize", "other", "writing")
_ASIDE = ("reading", "writing")  # what is no part of the session


class FrameTimes(NamedTuple):
    """Seconds of one frame.

    Fields:
        session: from the frame in memory to its answer in memory.
        stages: by name of `STAGES` or `PROPAGATION_STAGES`; "other" is what the session does
            besides.
    """

    session: float
    stages: dict[str, float]

    @property
    def with_reading(self) -> float:
        return self.session + self.stages["reading"]

    @property
    def whole(self) -> float:
        return self.with_reading + self.stages["writing"]


class StageClock:
    """Seconds per stage: wall time, on a CUDA device the time between events on its stream.

    Args:
        device: where `wrap`ped functions run.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the wall time of the block to `stage`."""
        start = time.perf_counter()
        yield
        self._add(stage, time.perf_counter() - start)

    def wrap(self, stage: str, function: Callable) -> Callable:
        """`function`, with its time added to `stage` at each call."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self._cuda:
                with self.measure(stage):
                    return function(*args, **kwargs)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            result = function(*args, **kwargs)
            end.record()
            self._events.append((stage, start, end))
            return result

        return timed

    def collect(self) -> dict[str, float]:
        """Seconds by stage since the last call; waits for the device."""
        if self._events:
            torch.cuda.synchronize()
        for stage, start, end in self._events:
            self._add(stage, start.elapsed_time(end) / 1000)
        seconds, self._seconds, self._events = self._seconds, {}, []
        return seconds

    def _add(self, stage: str, seconds: float) -> None:
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds


class Contestant:
    """One model with its options, ready to take frame after frame of one endless video.

    Args:
        name: how reports call it.
        model: in eval mode.
        source: iterable of (name, uint8 RGB (H, W, 3)); it is gone through again and again.
        scratch: existing folder for what is written.
        resize: uint8 (H, W, 3) -> uint8 (h, w, 3), what the model sees; None = the frame itself.
        labels_only: ask for labels; otherwise for scores, whose best class is then written.
        threads: CPU threads of PyTorch and OpenCV; None leaves them alone.
        objects: how many objects a model that propagates masks follows, from a made-up mask of
            the first frame.

    Raises:
        InputError: the model neither segments video nor propagates masks.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        source: Iterable[tuple[str, np.ndarray]],
        scratch: str | Path,
        *,
        resize: Callable[[np.ndarray], np.ndarray] | None = None,
        labels_only: bool = True,
        threads: int | None = None,
        objects: int = 1,
    ):
        if not isinstance(model, (VideoSegmentor, VideoMaskPropagator)):
            raise InputError(
                f"{type(model).__name__} cannot be measured: expected a model of video semantic "
                "segmentation or of mask propagation"
            )
        self.name, self.device = name, model.device
        self.threads = threads or torch.get_num_threads()
        self._scratch, self._resize, self._labels_only = Path(scratch), resize, labels_only
        self._frames = itertools.chain.from_iterable(itertools.repeat(source))
        self._clock = StageClock(model.device)
        self._session: Any = model.new_session()
        self.lag = self._session.lag
        self.objects = objects if isinstance(model, VideoMaskPropagator) else 0
        self._stages = PROPAGATION_STAGES if self.objects else STAGES
        self._begun = False
        network = getattr(self._session, "_network", model)
        for owner, method, stage in (
            (network, "encode", "encode"),
            (network, "read", "memory"),
            (network, "memorize", "memory"),
            (network, "decode", "decode"),
            (network, "predict_masks", "decode"),
            (self._session, "_finalize", "resize"),
            (self._session, "_scores", "resize"),
        ):
            if callable(getattr(owner, method, None)):
                setattr(owner, method, self._clock.wrap(stage, getattr(owner, method)))

    def step(self) -> FrameTimes:
        """Take the next frame through all stages."""
        set_threads(self.threads)
        clock = self._clock
        with clock.measure("reading"):
            name, frame = next(self._frames)
            resized = frame if self._resize is None else self._resize(frame)
            image = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
            given = self._first_mask(*image.shape[1:])
        start = time.perf_counter()
        with torch.inference_mode():
            answer = self._session.step(
                image.to(self.device),
                output_size=frame.shape[:2],
                labels_only=self._labels_only,
                **given,
            )
        result = None if answer is None else _on_host(answer)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        session = time.perf_counter() - start
        with clock.measure("writing"):
            if result is not None:
                labels = result if self._labels_only else result.argmax(0)
                write_label(self._scratch / f"{name}.png", labels)
        seconds = clock.collect()
        inside = sum(value for stage, value in seconds.items() if stage not in _ASIDE)
        stages = {stage: seconds.get(stage, 0.0) for stage in self._stages}
        return FrameTimes(session, stages | {"other": max(session - inside, 0.0)})

    def _first_mask(self, height: int, width: int) -> dict[str, torch.Tensor]:
        """The mask option of the first step of mask propagation; nothing else."""
        if not self.objects or self._begun:
            return {}
        self._begun = True
        mask = made_up_mask(self.objects, height, width)
        return {"mask": torch.from_numpy(mask).to(self.device)}


def made_up_mask(objects: int, height: int, width: int) -> np.ndarray:
    """Ellipses side by side with the ids 1 to `objects`, uint8 (height, width).

    Raises:
        InputError: there is no room for so many.
    """
    columns = int(np.ceil(np.sqrt(objects)))
    if not 1 <= objects <= 255 or min(height, width) < 4 * columns:
        raise InputError(f"{objects} objects do not fit into a mask of {height}x{width}.")
    y, x = np.mgrid[0:height, 0:width]
    row, column = y * columns // height, x * columns // width
    inside = np.hypot(
        (y + 0.5) * columns / height - row - 0.5, (x + 0.5) * columns / width - column - 0.5
    )
    ids = row * columns + column + 1
    return np.where((inside < 0.35) & (ids <= objects), ids, 0).astype(np.uint8)


def _on_host(answer: dict[str, Any]) -> np.ndarray:
    found = next(answer[key] for key in ("prob", "sem_seg", "mask", "labels") if key in answer)
    return found.cpu().numpy()


def set_threads(threads: int) -> None:
    """CPU threads of PyTorch and OpenCV."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    if cv2.getNumThreads() != threads:
        cv2.setNumThreads(threads)


def run(
    contestants: Sequence[Contestant],
    frames: int,
    warmup: int,
    progress: Callable[[range], Iterable[int]] = lambda rounds: rounds,
) -> list[list[FrameTimes]]:
    """Times of `frames` frames of each contestant, after `warmup` frames that do not count.

    Contestants take turns frame by frame, and every other round in reverse order, so that what
    else the machine does meets them alike. The lag of a session is added to its warm-up.
    """
    if frames < 1 or warmup < 0:
        raise InputError(f"frames must be at least 1 and warmup at least 0: {frames}, {warmup}")
    times: list[list[FrameTimes]] = [[] for _ in contestants]
    for contestant in contestants:
        for _ in range(warmup + contestant.lag):
            contestant.step()
    order = list(enumerate(contestants))
    for number in progress(range(frames)):
        for index, contestant in order if number % 2 == 0 else order[::-1]:
            times[index].append(contestant.step())
    return times


def summary(times: Sequence[FrameTimes]) -> dict[str, Any]:
    """Latencies in ms, rates in frames a second and shares of the whole, of one contestant."""
    reading = [t.with_reading for t in times]
    whole = sum(t.whole for t in times)
    totals = {stage: sum(t.stages[stage] for t in times) for stage in times[0].stages}
    return {
        "frames": len(times),
        "latency_ms": _latency([t.session for t in times]),
        "latency_with_reading_ms": _latency(reading),
        "frames_per_second": {
            "session": len(times) / sum(t.session for t in times),
            "with_reading": len(times) / sum(reading),
            "with_reading_and_writing": len(times) / whole,
        },
        "stage_ms": {stage: 1000 * total / len(times) for stage, total in totals.items()},
        "stage_share": {stage: total / sum(totals.values()) for stage, total in totals.items()},
    }


def _latency(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = (1000 * float(value) for value in np.percentile(seconds, [50, 99]))
    return {"mean": 1000 * float(np.mean(seconds)), "p50": p50, "p99": p99}


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Quotients of times that were taken side by side: their median and how far they spread.

    Returns:
        "median", "p10", "p90" of the quotients, and "rounds", how many there are.
    """
    quotients = np.asarray(numerator, float) / np.asarray(denominator, float)
    p10, p50, p90 = (float(value) for value in np.percentile(quotients, [10, 50, 90]))
    return {"median": p50, "p10": p10, "p90": p90, "rounds": len(quotients)}


class PeakMemory:
    """Peak memory of this process from now on, and of its CUDA device, in MB (2**20 bytes)."""

    def __init__(self, device: torch.device):
        self._device = device
        try:
            # Linux: 5 resets the high-water mark of the resident set.
            Path("/proc/self/clear_refs").write_text("5")
            self.since = "start of the measurement"
        except OSError:
            self.since = "start of the process"
        self._start = _resident("VmRSS")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> dict[str, Any]:
        """Resident set at the start and at its peak, allocated and reserved CUDA memory."""
        # The system counts pages in batches for each thread, so that the high-water mark can lag
        # behind the resident set by some of them.
        seen = [_resident("VmHWM"), _resident("VmRSS"), self._start]
        values: dict[str, Any] = {
            "rss_start_mb": self._start,
            "rss_peak_mb": max((mb for mb in seen if mb is not None), default=None),
            "rss_peak_since": self.since,
        }
        if self._device.type == "cuda":
            values["cuda_allocated_peak_mb"] = torch.cuda.max_memory_allocated(self._device) / 2**20
            values["cuda_reserved_peak_mb"] = torch.cuda.max_memory_reserved(self._device) / 2**20
        return values


def _resident(key: str) -> float | None:
    """A figure of the resident set in MB; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key)), None)


def generate_frames(folder: str | Path, count: int, height: int, width: int, seed: int = 0) -> None:
    """Write `count` JPEG frames of a moving pattern with fine grain to `folder`."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(height // 16, 2), max(width // 16, 2), 3), np.uint8)
    base = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = rng.integers(0, 24, (height, width, 3), np.uint8)
    for index in range(count):
        frame = cv2.add(np.roll(base, (index, 3 * index), (0, 1)), grain)
        write_image(Path(folder) / f"{index:05d}.jpg", frame)
