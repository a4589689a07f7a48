"""Mappers: a video dict becomes a training sample, a frame dict an evaluation item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from vss2.d2.utils import Registry
from vss2.data.clip_sampling import OffsetClipSampler
from vss2.data.image_io import read_image, read_label
from vss2.data.labels import DEFAULT_MAPPING, IGNORE_LABEL, train_labels
from vss2.data.stray_labels import find_stray_labels
from vss2.data.transforms import Clip
from vss2.errors import InputError

DATASET_MAPPER_REGISTRY = Registry("DATASET_MAPPER")
DATASET_MAPPER_REGISTRY.__doc__ = "Mappers by name; called with (video dict, generator) or (frame)."

Augmentation = Callable[[Clip, np.random.Generator], Clip]

STRAY_LABELS = ("void", "error")


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) -> contiguous uint8 (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


@DATASET_MAPPER_REGISTRY.register()
class ClipTrainMapper:
    """Draw a clip from a video, read it, augment all its frames alike and pad it.

    Frames without a label file get void labels and `labelled` False. Frames are padded with 0 and
    labels with 255 at the bottom and right; the model normalises and then zeroes the padding.
    Masks are read by the `label_mapping` of their video dict (see `vss2.data.labels`).

    Args:
        clip_sampler: picks frame positions; has `min_frames` (see `vss2.data.clip_sampling`).
        augmentations: called in order on the clip, each with the sample's generator.
        pad_size: (height, width) of the sample; must hold what the augmentations return.
        num_classes: label ids from here on count as void.
        stray_labels: what becomes of mask values that the data set does not define: "void" (VSPW
            as published holds some) or "error".
    """

    def __init__(
        self,
        clip_sampler: OffsetClipSampler,
        augmentations: Iterable[Augmentation],
        pad_size: Sequence[int],
        num_classes: int = 124,
        stray_labels: str = "void",
    ) -> None:
        self.clip_sampler = clip_sampler
        self.augmentations = tuple(augmentations)
        self.pad_size = tuple(int(side) for side in pad_size)
        self.num_classes = int(num_classes)
        self.stray_labels = stray_labels
        if len(self.pad_size) != 2 or min(self.pad_size) < 1:
            raise InputError(f"pad_size must be (height, width), got {list(self.pad_size)}.")
        if stray_labels not in STRAY_LABELS:
            raise InputError(f"stray_labels is one of {STRAY_LABELS}, got {stray_labels!r}.")

    @property
    def min_frames(self) -> int:
        """Length of the shortest video that this mapper takes."""
        return self.clip_sampler.min_frames

    def _read_label(self, file: str, mapping: str) -> np.ndarray:
        """Training ids of a mask, uint8 (H, W)."""
        raw = read_label(file)
        if self.stray_labels == "error":
            stray = find_stray_labels(raw, self.num_classes, mapping, file)
            if stray is not None:
                raise InputError(f"The label map {file} is wrong: {stray.message}.")
        return train_labels(raw, self.num_classes, mapping, file)

    def _read(self, frames: Sequence[dict[str, Any]], mapping: str) -> Clip:
        """Read frames and labels of a clip and check that all sizes agree."""
        clip = Clip([], [])
        for frame in frames:
            image = read_image(frame["file_name"])
            if clip.frames and image.shape != clip.frames[0].shape:
                raise InputError(
                    f"Frames of one video differ in size: {frames[0]['file_name']} is "
                    f"{_size(clip.frames[0])}, {frame['file_name']} is {_size(image)}."
                )
            if frame["label_file"] is None:
                label = np.full(image.shape[:2], IGNORE_LABEL, np.uint8)
            else:
                label = self._read_label(frame["label_file"], mapping)
            if label.shape != image.shape[:2]:
                raise InputError(
                    f"Image and label map differ in size: {frame['file_name']} is {_size(image)}, "
                    f"{frame['label_file']} is {_size(label)}."
                )
            clip.frames.append(image)
            clip.labels.append(label)
        return clip

    def _pad(self, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
        """Stack to uint8 (T, 3, H, W) and int64 (T, H, W) of `pad_size`."""
        height, width = clip.frames[0].shape[:2]
        if height > self.pad_size[0] or width > self.pad_size[1]:
            raise InputError(
                f"An augmented clip is {height}x{width}, larger than the pad_size "
                f"{self.pad_size[0]}x{self.pad_size[1]}: crop it or raise pad_size."
            )
        count = len(clip.frames)
        frames = torch.empty((count, 3, *self.pad_size), dtype=torch.uint8)
        labels = torch.empty((count, *self.pad_size), dtype=torch.int64)
        if (height, width) != self.pad_size:
            frames.zero_()
            labels.fill_(IGNORE_LABEL)
        for t, (frame, label) in enumerate(zip(clip.frames, clip.labels, strict=True)):
            for channel, plane in enumerate(cv2.split(frame)):
                frames.numpy()[t, channel, :height, :width] = plane
            labels.numpy()[t, :height, :width] = label
        return frames, labels

    def _positions(
        self, frames: Sequence[dict[str, Any]], rng: np.random.Generator
    ) -> Sequence[int]:
        """Positions of the clip's frames."""
        sampler: Any = self.clip_sampler
        if not getattr(sampler, "uses_labels", False):
            return sampler(len(frames), rng)
        labelled = [p for p, frame in enumerate(frames) if frame["label_file"] is not None]
        return sampler(len(frames), rng, labelled)

    def __call__(self, video: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A training sample of `video`; everything random is drawn from `rng`.

        Returns:
            `frames` uint8 (T, 3, H, W) RGB, `sem_seg` int64 (T, H, W), `labelled` bool (T,),
            `image_size` (h, w) before padding, `video_id`, `frame_indices` (T ints).

        Raises:
            InputFileError: a frame or label file is missing or corrupt.
            InputError: sizes disagree, the clip has no labels at all, or it exceeds `pad_size`.
        """
        positions = self._positions(video["frames"], rng)
        chosen = [video["frames"][position] for position in positions]
        labelled = torch.tensor([frame["label_file"] is not None for frame in chosen])
        if not labelled.any():
            raise InputError(
                f"A clip of video {video['video_id']!r} has no label file, frames "
                f"{[frame['frame_index'] for frame in chosen]}: it cannot be trained on."
            )
        clip = self._read(chosen, video.get("label_mapping", DEFAULT_MAPPING))
        for augmentation in self.augmentations:
            clip = augmentation(clip, rng)
        frames, labels = self._pad(clip)
        return {
            "frames": frames,
            "sem_seg": labels,
            "labelled": labelled,
            "image_size": tuple(clip.frames[0].shape[:2]),
            "video_id": video["video_id"],
            "frame_indices": [frame["frame_index"] for frame in chosen],
        }


@DATASET_MAPPER_REGISTRY.register()
class FrameTestMapper:
    """Read and resize one frame of evaluation; label maps are left to the evaluator.

    Args:
        resize: uint8 (H, W, 3) -> uint8 (h, w, 3); None keeps the stored size.
    """

    def __init__(self, resize: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self.resize = resize

    def __call__(self, frame: dict[str, Any]) -> dict[str, Any]:
        """An evaluation item of a frame dict.

        Args:
            frame: `file_name`, `label_file`, `frame_index`, `video_id`, `first_frame`,
                `last_frame`.

        Returns:
            The dict with `frame` uint8 (3, h, w) RGB and the stored `height` and `width`, which
            are the size of the output.

        Raises:
            InputFileError: the frame's file is missing or corrupt.
        """
        image = read_image(frame["file_name"])
        height, width = image.shape[:2]
        if self.resize is not None:
            image = self.resize(image)
        return {**frame, "frame": _to_tensor(image), "height": height, "width": width}


def _size(array: np.ndarray) -> str:
    """Height x width, for messages."""
    return f"{array.shape[0]}x{array.shape[1]}"
