"""Base class of video semantic segmentation: networks here, streaming state in sessions."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from vss2.errors import InputError

from ..session import VideoSession, WindowSession, split
from ..window import WindowRule
from .video_model import IMAGENET_MEAN, IMAGENET_STD, ITEM_KEYS, VideoModel

EVAL_OUTPUTS = ("labels", "sem_seg")


class VideoSegmentor(VideoModel):
    """A video semantic segmentation model.

    A method defines `encode`, `decode` and `losses`, and where less than all features is needed
    later, `keep`. Which frames are decoded together is its `window`.

    Args:
        num_classes: K.
        window: the rule that gives each frame its clip.
        pixel_mean, pixel_std: of RGB values 0 to 255.
        eval_output: what `model(batched_inputs)` answers in eval mode, "labels" or "sem_seg"
            (scores of 124 classes at 480p are 200 MB a frame).
        min_size: the smallest side, in pixels, that the network takes.
        size_divisor: sides must be multiples of it.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        window: WindowRule,
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
        eval_output: str = "labels",
        min_size: int = 32,
        size_divisor: int = 1,
    ):
        super().__init__(pixel_mean, pixel_std, min_size)
        if eval_output not in EVAL_OUTPUTS:
            raise InputError(f"eval_output is one of {EVAL_OUTPUTS}, got {eval_output!r}")
        if not 1 <= num_classes <= 255:
            raise InputError(f"num_classes lies between 1 and 255, got {num_classes}")
        self.num_classes = num_classes
        self.window = window
        self.eval_output = eval_output
        self.size_divisor = size_divisor
        self._pending: deque[dict[str, Any]] = deque()

    # What a method defines

    @abstractmethod
    def encode(self, images: torch.Tensor) -> Any:
        """Features of each image, independent of the others.

        Args:
            images: float [N, 3, H, W], normalised.

        Returns:
            A tensor, or nested dicts and tuples of tensors, with N in dimension 0.
        """

    def keep(self, features: Any) -> Any:
        """What later windows need of an answered frame's features; default all of them."""
        return features

    @abstractmethod
    def decode(self, clip: Sequence[Any], targets: Sequence[int]) -> torch.Tensor:
        """Scores of the target frames of one clip.

        Args:
            clip: features of its T frames in time order, each with N = 1: whole for frames that
                are not answered yet, what `keep` left for the others.
            targets: positions in the clip to answer.

        Returns:
            float [len(targets), K, h, w] at the model's own stride, before softmax.
        """

    @abstractmethod
    def losses(
        self, features: Any, sem_seg: torch.Tensor, labelled: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Training losses by name.

        Args:
            features: `encode`'s result for the B*T frames, batch-major.
            sem_seg: int64 [B, T, H, W], 255 is ignored.
            labelled: bool [B, T], the frames whose labels count.
        """

    # What all methods share

    def check_size(self, height: int, width: int) -> None:
        """Raise InputError when the network cannot take frames of this size."""
        super().check_size(height, width)
        divisor = self.size_divisor
        if height % divisor or width % divisor:
            wanted = [max(1, round(side / divisor)) * divisor for side in (height, width)]
            raise InputError(
                f"frames of {height}x{width} do not fit {type(self).__name__}: both sides must be "
                f"multiples of {divisor}, such as {wanted[0]}x{wanted[1]} (TestResize with "
                f"size_divisor={divisor} makes them so)"
            )

    def new_session(self) -> VideoSession:
        """A fresh streaming session; the model must be in eval mode."""
        return WindowSession(self)

    @torch.no_grad()
    def predict_clip(self, frames: torch.Tensor) -> torch.Tensor:
        """One window at once, without cache and without resizing.

        Args:
            frames: uint8 [T, 3, H, W] RGB.

        Returns:
            float scores [N, K, h, w] at the model's own stride, before the final resize and
            softmax: N = 1 (the last frame) for methods with references, else N = T.

        Raises:
            InputError: wrong type, shape or size; a T that the method does not take.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
            raise InputError(
                f"predict_clip takes uint8 frames (T, 3, H, W), got {frames.dtype} "
                f"{tuple(frames.shape)}"
            )
        self.check_size(*frames.shape[-2:])
        targets = self.window.targets(frames.shape[0])
        features = self.encode(self.normalize(frames.to(self.device)))
        clip = split(features, frames.shape[0])
        clip = [f if i in targets else self.keep(f) for i, f in enumerate(clip)]
        return self.decode(clip, targets)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training mode, answers in eval mode.

        Args:
            batched_inputs: training samples with `frames` uint8 [T, 3, H, W], `sem_seg` int64
                [T, H, W], `labelled` bool [T] and `image_size` (h, w); or, in eval mode, frames
                in order with `frame` uint8 [3, h, w], `video_id`, `frame_index`, `first_frame`,
                `last_frame`, and `height`, `width` of the answer.

        Returns:
            A dict of scalar losses; or the answers that are ready, each a dict with `labels` or
            `sem_seg` and the `video_id`, `frame_index`, `file_name`, `label_file` of its frame.
        """
        if self.training:
            return self._training_losses(batched_inputs)
        answers: list[dict[str, Any]] = []
        for item in batched_inputs:
            answers.extend(self._step(item))
        return answers

    def _training_losses(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        sem_seg = torch.stack([sample["sem_seg"] for sample in samples]).to(self.device)
        labelled = torch.stack([sample["labelled"] for sample in samples]).to(self.device)
        images = self._training_images(samples)
        return self.losses(self.encode(images.flatten(0, 1)), sem_seg, labelled)

    def _step(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        if item["first_frame"]:
            self._pending.clear()
        session = self._session_of(item)
        self._pending.append({key: item.get(key) for key in ITEM_KEYS})
        ready = session.step(
            item["frame"],
            output_size=(item["height"], item["width"]),
            labels_only=self.eval_output == "labels",
        )
        answers = [] if ready is None else [ready]
        if item["last_frame"]:
            answers.extend(session.finish())
            self._session = None
        return [answer | self._pending.popleft() for answer in answers]
