"""What models of whole videos share: frames in, and one running session in eval mode."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vss2.errors import InputError

from ..session import VideoSession

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
ITEM_KEYS = ("video_id", "frame_index", "file_name", "label_file")
"""What an answer in eval mode repeats of the frame that it answers."""


class VideoModel(nn.Module, ABC):
    """A network whose streaming state lies in sessions; `new_session` makes one.

    Args:
        pixel_mean, pixel_std: of RGB values 0 to 255.
        min_size: the smallest side, in pixels, that the network takes.
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor
    new_session: Callable[..., VideoSession]

    def __init__(
        self, pixel_mean: Sequence[float], pixel_std: Sequence[float], min_size: int
    ) -> None:
        super().__init__()
        self.min_size = min_size
        self.register_buffer("pixel_mean", torch.tensor(list(pixel_mean)).view(3, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(list(pixel_std)).view(3, 1, 1), False)
        self._session: VideoSession | None = None

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def normalize(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 RGB [..., 3, H, W] to normalised float32 of the same shape."""
        return (frames.float() - self.pixel_mean) / self.pixel_std

    def check_size(self, height: int, width: int) -> None:
        """Raise InputError when the network cannot take frames of this size."""
        if min(height, width) < self.min_size:
            raise InputError(
                f"frames of {height}x{width} are too small: {type(self).__name__} needs at least "
                f"{self.min_size} pixels on each side"
            )

    def _training_images(self, samples: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """The samples' frames, float [B, T, 3, H, W]: normalised, 0 outside of each image."""
        frames = torch.stack([sample["frames"] for sample in samples]).to(self.device)
        images = self.normalize(frames)
        for image, sample in zip(images, samples, strict=True):
            # The published pipelines pad after normalising, so padding is 0 for the network.
            height, width = sample["image_size"]
            image[..., height:, :] = 0
            image[..., width:] = 0
        return images

    def _session_of(self, item: Mapping[str, Any]) -> VideoSession:
        """The session that the item's frame belongs to; a new one at the first frame of a video."""
        if item["first_frame"]:
            self._session = self.new_session(**item.get("session", {}))
        if self._session is None:
            raise InputError(
                f"frame {item['frame_index']} of video {item['video_id']!r} came without the "
                "first frame of its video"
            )
        return self._session
