"""Segment a video frame by frame through one session, with one output for each frame, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from vss2.errors import InputError
from vss2.modeling.window import WindowRule

_HALF_MAX = float(np.finfo(np.float16).max)


class Prediction(NamedTuple):
    """One frame's result: its name, the frame itself and its labels.

    Fields:
        name: the source's name of the frame.
        frame: uint8 RGB (H, W, 3), as the source gave it.
        labels: uint8 (H, W) class ids, or the user's object ids, at the frame's own size.
        frame_index: number of the frame in the source, from 0.
        scores: float16 (K, ceil(H / stride), ceil(W / stride)) before softmax, or None.
    """

    name: str
    frame: np.ndarray
    labels: np.ndarray
    frame_index: int = 0
    scores: np.ndarray | None = None


class VideoPredictor:
    """Runs a video segmentation model over a source of frames.

    One frame at a time is in memory, plus, for a session that answers `lag` steps later, the
    frames that still wait for their answer.

    Args:
        model: a model with `new_session()` and `device`; it is put into eval mode.
        resize: uint8 (H, W, 3) -> uint8 (h, w, 3), what the model sees; None = the frame itself.
            Labels come back at (H, W).
        scores_stride: also answer with scores, of every stride-th pixel of every stride-th row;
            None = labels alone.
        session: options of the model's `new_session`.
        masks: called with a frame's index, name and (height, width), gives the mask (H, W) of
            object ids to propagate from there, or None; see `GivenMasks`.
    """

    def __init__(
        self,
        model: Any,
        resize: Callable[[np.ndarray], np.ndarray] | None = None,
        scores_stride: int | None = None,
        session: Mapping[str, Any] | None = None,
        masks: Callable[[int, str, tuple[int, int]], np.ndarray | None] | None = None,
    ):
        self.model = model.eval()
        self.resize = resize
        self.scores_stride = scores_stride
        self.session = dict(session or {})
        self.masks = masks

    def __call__(self, source: Iterable[tuple[str, np.ndarray]]) -> Iterator[Prediction]:
        """Yield a `Prediction` for each `(name, frame)` of the source, in the source's order.

        Raises:
            InputError: a frame's size differs from the first one's.
        """
        stream = self.open()
        for index, (name, frame) in enumerate(source):
            image, mask = self.prepare(frame), self.mask(index, name, frame)
            prediction = stream.step(index, name, frame, image, mask)
            if prediction is not None:
                yield prediction
        yield from stream.finish()

    def open(self) -> PredictionStream:
        """Begin a video."""
        return PredictionStream(self)

    def prepare(self, frame: np.ndarray) -> torch.Tensor:
        """What the session gets of a frame: uint8 (3, h, w), on the CPU. Any thread may call it."""
        image = frame if self.resize is None else self.resize(frame)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

    def mask(self, index: int, name: str, frame: np.ndarray) -> torch.Tensor | None:
        """The mask that is given for a frame, uint8 (H, W), on the CPU; one thread may call it."""
        if self.masks is None:
            return None
        mask = self.masks(index, name, (frame.shape[0], frame.shape[1]))
        return None if mask is None else torch.from_numpy(mask)


class PredictionStream:
    """A video in progress: frames in, predictions out in the same order.

    Args:
        predictor: whose model and options serve.

    Attributes:
        independent: whether no frame's answer depends on another frame, as far as can be known.
    """

    def __init__(self, predictor: VideoPredictor):
        self._predictor = predictor
        self._session = predictor.model.new_session(**predictor.session)
        self._waiting: deque[tuple[int, int, str, np.ndarray]] = deque()
        self._size: tuple[int, ...] | None = None
        self._steps = 0
        window = self._window()
        self.independent = window is not None and window.lookback == window.lag == 0

    def _window(self) -> WindowRule | None:
        """The rule that alone says what an answer depends on, None for other sessions."""
        alone = getattr(self._session, "window_only", False)
        return self._predictor.model.window if alone else None

    def first_needed(self, position: int) -> int:
        """The latest frame from which on this session must see the video, to answer from
        `position` on as if it had seen all of it."""
        window = self._window()
        return 0 if window is None else fresh_start(window, position)

    def step(
        self,
        index: int,
        name: str,
        frame: np.ndarray,
        image: torch.Tensor,
        mask: torch.Tensor | None = None,
        need_output: bool = True,
    ) -> Prediction | None:
        """Give the session the next frame; return the prediction that is due, if one is.

        Args:
            index, name, frame: of the frame, as in `Prediction`.
            image, mask: what the predictor's `prepare` and `mask` give for it.
            need_output: False for a frame that only later ones need.

        Raises:
            InputError: the frame's size differs from the first one's.
        """
        size = frame.shape[:2]
        self._size = self._size or size
        if size != self._size:
            raise InputError(
                f"Frame {name} is {size[0]}x{size[1]}, the first one is "
                f"{self._size[0]}x{self._size[1]} (height x width): a video has frames of one size."
            )
        if need_output:
            self._waiting.append((self._steps, index, name, frame))
        self._steps += 1
        options: dict[str, Any] = {} if need_output else {"need_output": False}
        if mask is not None:
            options["mask"] = mask.to(self._predictor.model.device)
        with torch.inference_mode():
            output = self._session.step(
                image.to(self._predictor.model.device),
                output_size=size,
                labels_only=self._predictor.scores_stride is None,
                **options,
            )
        return None if output is None else self._pair(output)

    def finish(self) -> Iterator[Prediction]:
        """End the video: yield the predictions still owed."""
        outputs = iter(self._session.finish())
        while True:
            with torch.inference_mode():
                output = next(outputs, None)
            if output is None:
                break
            yield self._pair(output)
        if self._waiting:
            raise RuntimeError(f"The session left {len(self._waiting)} frames without an answer.")

    def _pair(self, output: dict) -> Prediction:
        """The oldest waiting frame with its answer: sessions answer in frame order."""
        if not self._waiting or output["frame_index"] != self._waiting[0][0]:
            due = self._waiting[0][0] if self._waiting else None
            raise RuntimeError(
                f"The session answered frame {output['frame_index']} where {due} was due."
            )
        _, index, name, frame = self._waiting.popleft()
        stride, scores = self._predictor.scores_stride, None
        if stride is None:
            labels = output["mask"] if "mask" in output else output["labels"]
        else:
            with torch.inference_mode():
                labels = output["sem_seg"].argmax(0).to(torch.uint8)
                few = output["sem_seg"][:, ::stride, ::stride]
                scores = few.clamp(-_HALF_MAX, _HALF_MAX).half().cpu().numpy()
        labels = labels.cpu().numpy().astype(np.uint8, copy=False)
        return Prediction(name, frame, labels, index, scores)


def fresh_start(window: WindowRule, position: int) -> int:
    """The latest frame at which a session may begin and still answer from `position` on as one
    that began at frame 0: from there on every clip holds the same frames.

    Clips are compared over the next `2 * (lookback + lag + 1)` frames, for a video that goes on
    and for one that ends at any of them: a rule repeats itself within that.
    """
    span = window.lookback + window.lag + 1
    for first in range(position, max(position - 4 * span, 0), -1):
        if all(
            _shifted(window, index, first, num_frames) == window.clip(index, num_frames)
            for index in range(position, position + 2 * span)
            for num_frames in (None, *range(index + 1, index + window.lag + 1))
        ):
            return first
    return 0


def _shifted(window: WindowRule, index: int, first: int, num_frames: int | None) -> tuple:
    """The clip of frame `index` in a session that began at frame `first`."""
    clip = window.clip(index - first, None if num_frames is None else num_frames - first)
    return tuple(tuple(frame + first for frame in frames) for frames in clip)
