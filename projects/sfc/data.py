"""Training data without labels: short clips of frames, each cropped twice.

Hu et al., Semantic-Aware Fine-Grained Correspondence, ECCV 2022, section 4.1, and its release.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from PIL import Image

from vss2.d2.utils import comm
from vss2.data.build import get_video_dicts
from vss2.data.image_io import read_image
from vss2.data.loaders import TrainLoader
from vss2.data.mappers import DATASET_MAPPER_REGISTRY
from vss2.data.samplers import PositionSampler
from vss2.errors import InputError

FULL_RATE = 30  # frames per second of the video files
CROP_TRIES = 10

Box = tuple[int, int, int, int]


def random_crop_box(
    height: int,
    width: int,
    scale: Sequence[float],
    ratio: Sequence[float],
    rng: random.Random,
) -> Box:
    """A random box of a frame: (top, left, height, width).

    Its area is uniform in `scale`, a share of the frame's, and the logarithm of its aspect w/h in
    that of `ratio`. A box that does not fit is drawn again, ten times at most; then the largest
    one in the middle whose aspect is in `ratio` is taken.
    """
    for _ in range(CROP_TRIES):
        area = rng.uniform(*scale) * (height * width)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = rng.randint(0, height - h)
            return top, rng.randint(0, width - w), h, w
    h, w = height, width
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def box_coordinates(box: Box, height: int, width: int) -> list[float]:
    """x0, y0, x1, y1 of the box's corner pixels, in units of the frame's sides."""
    top, left, h, w = box
    return [
        left / (width - 1),
        top / (height - 1),
        (left + w - 1) / (width - 1),
        (top + h - 1) / (height - 1),
    ]


def crop(frame: np.ndarray, box: Box, size: int) -> np.ndarray:
    """The box of a frame uint8 [H, W, 3], resized to size x size with antialiasing."""
    top, left, h, w = box
    part = Image.fromarray(np.ascontiguousarray(frame[top : top + h, left : left + w]))
    return np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))


@DATASET_MAPPER_REGISTRY.register()
class TwoCropMapper:
    """Every frame of a clip cropped twice, at random and independently.

    Args:
        size: of the crops, in pixels.
        scale, ratio: see `random_crop_box`.
    """

    def __init__(
        self,
        size: int = 256,
        scale: Sequence[float] = (0.0, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
    ) -> None:
        self.size = int(size)
        self.scale = tuple(float(value) for value in scale)
        self.ratio = tuple(float(value) for value in ratio)
        if self.size < 1 or not 0 <= self.scale[0] <= self.scale[1] <= 1:
            raise InputError(
                f"crops have a size above 0 and a scale within 0..1, got {size}, {list(scale)}"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InputError(f"ratio is a range above 0, got {list(ratio)}")

    def __call__(self, video: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A training sample of a clip.

        Args:
            video: a video dict whose frames are the clip.

        Returns:
            `frames` uint8 [2, T, 3, S, S] RGB, `boxes` float [2, T, 4] (see `box_coordinates`),
            `image_size` (S, S), `video_id`, `frame_indices` (T ints).

        Raises:
            InputError: a frame is missing, damaged or one pixel wide or high.
        """
        draws = random.Random(int(rng.integers(2**63)))
        frames = [read_image(frame["file_name"]) for frame in video["frames"]]
        views, boxes = [], []
        for _ in range(2):
            for frame, info in zip(frames, video["frames"], strict=True):
                height, width = frame.shape[:2]
                if min(height, width) < 2:
                    raise InputError(f"The frame {info['file_name']} is {height}x{width} pixels.")
                box = random_crop_box(height, width, self.scale, self.ratio, draws)
                views.append(torch.from_numpy(crop(frame, box, self.size).copy()))
                boxes.append(box_coordinates(box, height, width))
        count = len(frames)
        return {
            "frames": torch.stack(views).permute(0, 3, 1, 2).unflatten(0, (2, count)).contiguous(),
            "boxes": torch.tensor(boxes).unflatten(0, (2, count)),
            "image_size": (self.size, self.size),
            "video_id": video["video_id"],
            "frame_indices": [frame["frame_index"] for frame in video["frames"]],
        }


class Clips(Sequence[dict[str, Any]]):
    """All clips of consecutive frames of all videos, one after the other.

    Args:
        videos: video dicts.
        clip_len: frames of a clip.
        frame_rate: of its frames; videos have 30 frames per second.
    """

    def __init__(self, videos: Sequence[dict[str, Any]], clip_len: int, frame_rate: float) -> None:
        self.videos = videos
        self.clip_len = clip_len
        self.dilation = round(FULL_RATE / frame_rate)
        span = (clip_len - 1) * self.dilation
        self.counts = [max(len(video["frames"]) - span, 0) for video in videos]
        self._ends = list(accumulate(self.counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, index)
        video = self.videos[number]
        first = index - (self._ends[number] - self.counts[number])
        frames = video["frames"]
        positions = range(first, first + self.clip_len * self.dilation, self.dilation)
        return {"video_id": video["video_id"], "frames": [frames[p] for p in positions]}


def epoch_order(
    counts: Sequence[int], per_video: int, generator: torch.Generator | None = None
) -> list[int]:
    """Clips of one epoch: at most `per_video` random ones of each video, shuffled together.

    Args:
        counts: clips of each video.
        generator: default torch's global one.

    Returns:
        Indices into the clips of all videos.
    """
    chosen, first = [], 0
    for count in counts:
        chosen.append(torch.randperm(count, generator=generator)[:per_video] + first)
        first += count
    clips = torch.cat(chosen)
    return clips[torch.randperm(len(clips), generator=generator)].tolist()


class EpochSampler(PositionSampler):
    """A `PositionSampler` whose passes are those of `epoch_order`.

    Args:
        counts: clips of each video.
        per_video: of them in one epoch, at most.
        others: see `PositionSampler`.
    """

    def __init__(self, counts: Sequence[int], per_video: int, *others: int):
        super().__init__(sum(counts), *others)
        self.counts = counts
        self.per_video = per_video

    def draw(self, generator: torch.Generator) -> list[int]:
        return epoch_order(self.counts, self.per_video, generator)


class FrameLoader(TrainLoader):
    """A `TrainLoader` of clips, some of every video in each epoch.

    Args:
        clips: of the videos.
        per_video: clips of a video in one epoch, at most.
        others: see `TrainLoader`.
    """

    def __init__(self, clips: Clips, per_video: int, mapper: Callable[..., Any], **others: Any):
        super().__init__(clips.videos, mapper, **others)
        self.items = Clips(self.videos, clips.clip_len, FULL_RATE / clips.dilation)
        self.per_video = per_video
        self.epoch_length = sum(min(count, per_video) for count in clips.counts)

    def _sampler(self, *place: int) -> EpochSampler:
        return EpochSampler(self.items.counts, self.per_video, self.seed, *place)


def build_frame_loader(
    *,
    dataset: str | Sequence[str],
    mapper: Callable[..., Any],
    total_batch_size: int,
    clip_len: int = 1,
    frame_rate: float = FULL_RATE,
    clips_per_video: int = 80,
    num_workers: int = 0,
    seed: int | None = None,
    on_error: str = "error",
) -> FrameLoader:
    """Loader of unlabelled training clips.

    Args:
        dataset: registered name, or names.
        mapper: (clip, generator) -> sample.
        total_batch_size: clips per iteration over all ranks; divisible by their number.
        clip_len, frame_rate: see `Clips`.
        clips_per_video: clips of a video in one epoch, at most.
        num_workers: worker processes per rank.
        seed: of order and content; None or negative draws one that all ranks share.
        on_error: see `vss2.data.build.build_train_loader`.

    Raises:
        InputError: unknown data set, no video that is long enough, a number out of range.
    """
    world_size = comm.get_world_size()
    if total_batch_size < 1 or total_batch_size % world_size:
        raise InputError(
            f"total_batch_size must be a positive multiple of the number of processes "
            f"({world_size}), got {total_batch_size}."
        )
    if clip_len < 1 or clips_per_video < 1 or not 0 < frame_rate <= FULL_RATE:
        raise InputError(
            f"clip_len and clips_per_video are at least 1 and frame_rate lies in 0..{FULL_RATE}, "
            f"got {clip_len}, {clips_per_video}, {frame_rate}."
        )
    clips = Clips(get_video_dicts(dataset), int(clip_len), float(frame_rate))
    if not len(clips):
        raise InputError(f"No video of {dataset!r} is long enough for a clip of {clip_len} frames.")
    if seed is None or seed < 0:
        seed = comm.shared_random_seed()
    return FrameLoader(
        clips,
        int(clips_per_video),
        mapper,
        total_batch_size=int(total_batch_size),
        num_workers=int(num_workers),
        seed=int(seed),
        on_error=on_error,
    )
