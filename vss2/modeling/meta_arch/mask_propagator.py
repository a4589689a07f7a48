"""Base class of mask propagation: networks here, objects and memory in sessions."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from vss2.errors import InputError

from ..propagation_session import PropagationSession
from ..session import VideoSession
from .video_model import IMAGENET_MEAN, IMAGENET_STD, ITEM_KEYS, VideoModel


class VideoMaskPropagator(VideoModel):
    """A model that carries masks of objects, or other soft labels, through a video.

    A method defines `encode`, `memorize`, `read`, `decode` and `losses`, and names the kind of
    session that calls them. Objects, memory and schedule live in the session.

    Args:
        session: options of `new_session`, such as the protocol of a benchmark; what a caller of
            `new_session` gives goes before them.
        pixel_mean, pixel_std: of RGB values 0 to 255.
        min_size: the smallest side, in pixels, that the network takes.

    Attributes:
        session_type: the kind of session; its constructor's keywords are the options.
        stride: of the coarsest map; sessions that pad, pad to multiples of it.
    """

    session_type: ClassVar[type[PropagationSession]]
    stride: int = 1

    def __init__(
        self,
        *,
        session: Mapping[str, Any] | None = None,
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
        min_size: int = 1,
    ):
        super().__init__(pixel_mean, pixel_std, min_size)
        self.session_options = dict(session or {})

    # What a method defines

    @abstractmethod
    def encode(self, images: torch.Tensor) -> Any:
        """Features of each image, independent of masks and of the others.

        Args:
            images: float [N, 3, H, W], normalised.

        Returns:
            A tensor, or nested dicts and tuples of tensors, with N in dimension 0.
        """

    @abstractmethod
    def memorize(self, features: Any, masks: torch.Tensor) -> Any:
        """What the memory keeps of one frame.

        Args:
            features: `encode`'s result, N = 1.
            masks: float [O, H, W] of all objects, at the image's size.
        """

    @abstractmethod
    def read(self, features: Any, memory: Any) -> Any:
        """What the memory says of one frame, for each object.

        Args:
            features: `encode`'s result, N = 1.
            memory: what the session made of `memorize`'s results.
        """

    @abstractmethod
    def decode(self, features: Any, readout: Any) -> torch.Tensor:
        """Each object's probability, or soft label, in one frame: float [O, h, w]."""

    @abstractmethod
    def losses(
        self, images: torch.Tensor, samples: Sequence[Mapping[str, Any]]
    ) -> dict[str, torch.Tensor]:
        """Training losses by name.

        Args:
            images: float [B, T, 3, H, W], normalised, 0 outside of each sample's `image_size`.
            samples: B training samples with all that their mapper made.
        """

    # What all methods share

    def for_inference(self, amp: bool = False) -> VideoMaskPropagator:
        """What sessions call: this model, or one that computes the same from its weights faster.

        Args:
            amp: whether the session uses mixed precision.
        """
        return self

    def new_session(self, **options: Any) -> VideoSession:
        """A fresh streaming session; the model must be in eval mode.

        Args:
            **options: keywords of `session_type`; the model's own `session` serves for the rest.

        Raises:
            InputError: an option that the kind of session does not have.
        """
        return self._single_session({**self.session_options, **options})

    def _single_session(self, options: Mapping[str, Any]) -> PropagationSession:
        known = list(inspect.signature(self.session_type).parameters)[1:]
        for name in options:
            if name not in known:
                raise InputError(
                    f"sessions of {type(self).__name__} have no option {name!r}; they take "
                    f"{', '.join(known)}"
                )
        return self.session_type(self, **options)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training mode, answers in eval mode.

        Args:
            batched_inputs: training samples with `frames` uint8 [T, 3, H, W], `masks` [T, H, W]
                object ids, `num_objects` and `image_size` (h, w); or, in eval mode, frames in
                order with `frame` uint8 [3, h, w], `video_id`, `frame_index`, `first_frame`,
                `last_frame`, `height` and `width` of the answer, and where there are any `mask`
                and `objects`, see `PropagationSession.step`, `required` (default True: an answer
                is wanted) and, at the first frame, `session`, options of `new_session`.

        Returns:
            A dict of scalar losses; or the answers to required frames, each a dict with `mask`,
            `object_ids` and the `video_id`, `frame_index`, `file_name`, `label_file` of its frame.
        """
        if self.training:
            return self.losses(self._training_images(batched_inputs), batched_inputs)
        answers = (self._step(item) for item in batched_inputs)
        return [answer for answer in answers if answer is not None]

    def _step(self, item: dict[str, Any]) -> dict[str, Any] | None:
        session = self._session_of(item)
        answer = session.step(
            item["frame"],
            mask=item.get("mask"),
            objects=item.get("objects"),
            output_size=(item["height"], item["width"]),
            labels_only=True,
            need_output=bool(item.get("required", True)),
        )
        if item["last_frame"]:
            list(session.finish())
            self._session = None
        if answer is None:
            return None
        return answer | {key: item.get(key) for key in ITEM_KEYS}
