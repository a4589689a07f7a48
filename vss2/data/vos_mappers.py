"""Mappers of video object segmentation: clips of objects for training, frames for evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vss2.data.clip_sampling import SkipClipSampler
from vss2.data.first_frame import MAX_OBJECTS, read_object_mask
from vss2.data.image_io import StrPath, read_image, read_label
from vss2.data.mappers import DATASET_MAPPER_REGISTRY, Augmentation
from vss2.data.transforms import Clip
from vss2.data.vos_sampling import ObjectSampler, renumbered
from vss2.errors import InputError

VOID = 255


def _read_ids(path: StrPath, single_object: bool) -> np.ndarray:
    """Object ids of an annotation, uint8 (H, W); void is background."""
    ids = read_label(path)
    return _ids(ids, single_object)


def _ids(stored: np.ndarray, single_object: bool) -> np.ndarray:
    """Object ids of stored values: all as one object, or void as background."""
    if single_object:
        return (stored > 0).astype(np.uint8)
    return np.where(stored == VOID, np.uint8(0), stored)


def _check_sizes(frames: Sequence[dict[str, Any]], clip: Clip) -> None:
    shape = clip.labels[0].shape
    for frame, image, mask in zip(frames, clip.frames, clip.labels, strict=True):
        if mask.shape != shape or image.shape[:2] != shape:
            raise InputError(
                f"Frames and masks of one video must have one size: {frame['file_name']} is "
                f"{image.shape[0]}x{image.shape[1]}, {frame['label_file']} is "
                f"{mask.shape[0]}x{mask.shape[1]}, {frames[0]['label_file']} is "
                f"{shape[0]}x{shape[1]}."
            )


def _frames_tensor(frames: Sequence[np.ndarray], owner: str) -> torch.Tensor:
    """uint8 (T, 3, H, W) of frames that must have one size."""
    if len({frame.shape for frame in frames}) > 1:
        raise InputError(
            f"The augmented frames of {owner!r} differ in size: end the augmentations with a crop."
        )
    return torch.from_numpy(np.stack(frames).transpose(0, 3, 1, 2).copy())


@DATASET_MAPPER_REGISTRY.register()
class ObjectClipMapper:
    """Draw a clip from a video, augment it and choose objects of its first frame (STCN, 1 to 3).

    Where the augmented first frame holds no object, frames and augmentation are drawn again.

    Args:
        clip_sampler: picks frame positions by the position in the stream.
        augmentations: called in order on the clip, each with the sample's generator; all frames
            end in one size.
        object_sampler: picks ids of the augmented clip.
        tries: how often frames are drawn; after that the target is empty.
    """

    uses_position = True

    def __init__(
        self,
        clip_sampler: SkipClipSampler,
        augmentations: Iterable[Augmentation],
        object_sampler: ObjectSampler,
        tries: int = 5,
    ) -> None:
        self.clip_sampler = clip_sampler
        self.augmentations = tuple(augmentations)
        self.object_sampler = object_sampler
        self.tries = int(tries)
        if self.tries < 1:
            raise InputError(f"ObjectClipMapper.tries must be at least 1, got {tries}.")

    @property
    def min_frames(self) -> int:
        """Length of the shortest video that this mapper takes."""
        return self.clip_sampler.min_frames

    def __call__(
        self, video: dict[str, Any], rng: np.random.Generator, position: int
    ) -> dict[str, Any]:
        """A training sample of `video`; everything random is drawn from `rng`.

        Args:
            video: all of its frames have label files; `frame_step` says how many frames of video
                lie from one to the next (default 1).
            position: of the sample in the stream.

        Returns:
            `frames` uint8 (T, 3, H, W) RGB, `masks` uint8 (T, H, W) with 0 for the background, 1
            for the target, 2, ... for others, `num_objects` (at least 1: where no object was
            found, the target is empty), `image_size` (H, W), `video_id`, `frame_indices`.

        Raises:
            InputFileError: a frame or mask is missing or corrupt.
            InputError: sizes disagree.
        """
        count, step = len(video["frames"]), int(video.get("frame_step", 1))
        for _ in range(self.tries):
            positions = self.clip_sampler(count, rng, position, step)
            chosen = [video["frames"][p] for p in positions]
            clip = Clip(
                [read_image(frame["file_name"]) for frame in chosen],
                [_read_ids(frame["label_file"], False) for frame in chosen],
            )
            _check_sizes(chosen, clip)
            for augmentation in self.augmentations:
                clip = augmentation(clip, rng)
            ids = self.object_sampler(clip.labels, rng)
            if ids:
                break
        frames = _frames_tensor(clip.frames, video["video_id"])
        return {
            "frames": frames,
            "masks": torch.from_numpy(renumbered(clip.labels, ids)),
            "num_objects": max(len(ids), 1),
            "image_size": tuple(frames.shape[-2:]),
            "video_id": video["video_id"],
            "frame_indices": [frame["frame_index"] for frame in chosen],
        }


@DATASET_MAPPER_REGISTRY.register()
class StaticClipMapper:
    """Make a clip of one image with its mask (STCN, stage 0).

    Args:
        augmentations: called in order on the image, as a clip of one frame and a grey mask 0 to
            255; one of them repeats the frame (`RepeatFrame`), later ones move the copies apart.
    """

    min_frames = 1

    def __init__(self, augmentations: Iterable[Augmentation]) -> None:
        self.augmentations = tuple(augmentations)

    def __call__(self, video: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A training sample of an image; everything random is drawn from `rng`.

        Args:
            video: of one frame.

        Returns:
            As `ObjectClipMapper`, with one object, `masks` where the grey mask is above half, and
            `soft_masks`, the grey mask in 0..1, float32 (T, 1, H, W): what bicubic moves left of it
            is what the published training shows the network.

        Raises:
            InputFileError: the image or mask is missing or corrupt.
            InputError: sizes disagree.
        """
        frame = video["frames"][0]
        clip = Clip([read_image(frame["file_name"])], [read_grey_mask(frame["label_file"])])
        _check_sizes([frame], clip)
        for augmentation in self.augmentations:
            clip = augmentation(clip, rng)
        frames = _frames_tensor(clip.frames, video["video_id"])
        grey = torch.from_numpy(np.stack(clip.labels))
        return {
            "frames": frames,
            "masks": (grey > 127).to(torch.uint8),
            "soft_masks": grey[:, None].float() / 255,
            "num_objects": 1,
            "image_size": tuple(frames.shape[-2:]),
            "video_id": video["video_id"],
            "frame_indices": [frame["frame_index"]] * len(clip.frames),
        }


def read_grey_mask(path: StrPath) -> np.ndarray:
    """A mask as grey values, uint8 (H, W), whatever the image's mode.

    Raises:
        InputFileError: the file is missing, empty, cut off or not an image.
    """
    image = read_image(path)  # its checks, and palettes become colours
    return np.array(Image.fromarray(image).convert("L"))


@DATASET_MAPPER_REGISTRY.register()
class ObjectFrameMapper:
    """Read one frame of evaluation, and the mask that is given with it.

    Args:
        single_object: all ids of a mask are one object (DAVIS 2016); else 255 is void.
        max_objects: see `vss2.data.first_frame`.
    """

    def __init__(self, single_object: bool = False, max_objects: int = MAX_OBJECTS) -> None:
        self.single_object = bool(single_object)
        self.max_objects = int(max_objects)

    def __call__(self, frame: dict[str, Any]) -> dict[str, Any]:
        """An evaluation item of a frame dict.

        Args:
            frame: `file_name`, `label_file`, `frame_index`, `mask_file` (None: no mask is given),
                `required`, `video_id`, `first_frame`, `last_frame`.

        Returns:
            The dict with `frame` uint8 (3, h, w) RGB and the stored `height` and `width`; where a
            mask is given also `mask` uint8 (h, w) and `objects`, the ids in it.

        Raises:
            InputFileError: a file is missing or corrupt.
            InputError: the mask does not fit the frame, or is none (see `read_object_mask`).
        """
        image = read_image(frame["file_name"])
        height, width = image.shape[:2]
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        item = {**frame, "frame": tensor, "height": height, "width": width}
        if frame["mask_file"] is not None:
            stored = read_object_mask(frame["mask_file"], (height, width), self.max_objects)
            mask = _ids(stored, self.single_object)
            item["mask"] = torch.from_numpy(mask)
            item["objects"] = [int(i) for i in np.unique(mask) if i]
        return item
