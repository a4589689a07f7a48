"""Streaming state, apart from the networks: one session is one video in progress."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from vss2.errors import InputError

from .losses import resize_scores
from .resize import resized_labels

if TYPE_CHECKING:
    from .meta_arch import VideoSegmentor


class VideoSession(ABC):
    """Frames in, one answer per frame out, in order.

    Attributes:
        lag: steps between a frame and its answer; 0 for causal methods, whose `step` answers
            the frame it was given.
    """

    lag: int = 0

    @abstractmethod
    def step(
        self,
        frame: torch.Tensor,
        mask: torch.Tensor | None = None,
        objects: list[int] | None = None,
        remove: tuple[int, ...] = (),
        output_size: tuple[int, int] | None = None,
        labels_only: bool = False,
        need_output: bool = True,
    ) -> dict[str, Any] | None:
        """Take the next frame; return the answer that is due, if one is."""

    @abstractmethod
    def finish(self) -> Iterator[dict[str, Any]]:
        """End the video and give the answers still owed, in frame order."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the video; the next frame is frame 0 of another one."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on with this video elsewhere: tensors, numbers, containers."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the video that `state_dict` describes."""


def check_frame(frame: torch.Tensor) -> None:
    """Raise InputError unless `frame` is what a session takes: uint8 [3, H, W]."""
    if not isinstance(frame, torch.Tensor) or frame.dtype != torch.uint8:
        kind = frame.dtype if isinstance(frame, torch.Tensor) else type(frame).__name__
        raise InputError(f"a frame is a uint8 tensor (3, H, W), got {kind}")
    if frame.ndim != 3 or frame.shape[0] != 3:
        raise InputError(f"a frame is a uint8 tensor (3, H, W), got {tuple(frame.shape)}")


@dataclass
class _Request:
    """What the caller asked for a frame that is not answered yet."""

    index: int
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    labels_only: bool
    need_output: bool


class WindowSession(VideoSession):
    """The session of a `VideoSegmentor`: caches what later windows need of each frame.

    Every frame is encoded once, however many windows it appears in. Held at any time: what
    `model.keep` leaves of at most `window.lookback` answered frames, the whole features of at
    most `window.lag + 1` others, and the scores of at most `window.lag` frames that wait for
    their turn. Where windows are disjoint, features go as soon as their clip is decoded.

    Attributes:
        window_only: whether an answer depends on the frames of its window alone; a session that
            carries more from frame to frame says False.
    """

    window_only = True

    def __init__(self, model: VideoSegmentor):
        if model.training:
            raise InputError("a session needs a model in eval mode; call model.eval() first")
        self._model = model
        self.lag = model.window.lag
        self.reset()

    def reset(self) -> None:
        self._num_frames = 0
        self._finished = False
        self._input_size: tuple[int, int] | None = None
        self._kept: dict[int, Any] = {}
        self._scores: dict[int, torch.Tensor] = {}
        self._requests: deque[_Request] = deque()

    def step(
        self,
        frame: torch.Tensor,
        mask: torch.Tensor | None = None,
        objects: list[int] | None = None,
        remove: tuple[int, ...] = (),
        output_size: tuple[int, int] | None = None,
        labels_only: bool = False,
        need_output: bool = True,
    ) -> dict[str, Any] | None:
        """Take the next frame of the video.

        Args:
            frame: uint8 [3, H, W] RGB at the size that the network shall see.
            mask, objects, remove: of mask propagation; not taken here.
            output_size: (H', W') of the answer; default the frame's own size.
            labels_only: answer with labels instead of scores.
            need_output: False lets the frame serve later windows without being decoded.

        Returns:
            None while answers lag behind or for a frame that needs none, else a dict with
            `frame_index` and either `sem_seg`, float [K, H', W'] scores before softmax, or
            `labels`, uint8 [H', W'].

        Raises:
            InputError: wrong type, shape or size of the frame; a mask; a finished session.
        """
        if mask is not None or objects is not None or remove:
            raise InputError(
                "semantic segmentation takes frames alone: mask, objects and remove belong to "
                "mask propagation"
            )
        seen = self._seen(frame)
        features = self._encode(seen[None])[0]
        return self._take(features, frame, seen, output_size, labels_only, need_output)

    def run(
        self,
        frames: Iterable[torch.Tensor],
        batch: int = 1,
        output_size: tuple[int, int] | None = None,
        labels_only: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Answers for all `frames`, then `finish`; encodes `batch` frames at a time."""
        if batch < 1:
            raise InputError(f"batch must be at least 1, got {batch}")
        iterator = iter(frames)
        while chunk := list(islice(iterator, batch)):
            seen = [self._seen(frame) for frame in chunk]
            if len({image.shape for image in seen}) == 1:
                encoded = self._encode(torch.stack(seen))
            else:
                encoded = [self._encode(image[None])[0] for image in seen]
            for frame, image, features in zip(chunk, seen, encoded, strict=True):
                answer = self._take(features, frame, image, output_size, labels_only, True)
                if answer is not None:
                    yield answer
        yield from self.finish()

    def finish(self) -> Iterator[dict[str, Any]]:
        self._finished = True
        return self._remaining()

    def state_dict(self) -> dict[str, Any]:
        return {
            "num_frames": self._num_frames,
            "finished": self._finished,
            "input_size": self._input_size,
            "kept": dict(self._kept),
            "scores": dict(self._scores),
            "requests": [asdict(request) for request in self._requests],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self._model.device
        self._num_frames = state["num_frames"]
        self._finished = state["finished"]
        self._input_size = None if state["input_size"] is None else tuple(state["input_size"])
        self._kept = {index: move(kept, device) for index, kept in state["kept"].items()}
        self._scores = {index: move(value, device) for index, value in state["scores"].items()}
        self._requests = deque(_Request(**request) for request in state["requests"])

    def _prepare(self, frame: torch.Tensor) -> torch.Tensor:
        """What the network sees of a frame, uint8 [3, h, w]; here the frame itself."""
        return frame

    def _seen(self, frame: torch.Tensor) -> torch.Tensor:
        """The frame as the network sees it, checked."""
        if self._finished:
            raise InputError("this session is finished; call reset() before the next video")
        check_frame(frame)
        frame = self._prepare(frame)
        size = (frame.shape[1], frame.shape[2])
        self._model.check_size(*size)
        window = self._model.window
        if (window.lookback or window.lag) and self._input_size not in (None, size):
            raise InputError(
                f"frame {self._num_frames} is {size[0]}x{size[1]}, but the frames before it "
                f"are {self._input_size[0]}x{self._input_size[1]}; they share windows and must "
                "have one size"
            )
        self._input_size = size
        return frame

    def _encode(self, frames: torch.Tensor) -> list[Any]:
        """Features of each of the frames [N, 3, H, W], every tensor with a leading 1."""
        model = self._model
        with torch.no_grad():
            features = model.encode(model.normalize(frames.to(model.device)))
        return split(features, frames.shape[0])

    def _take(
        self,
        features: Any,
        frame: torch.Tensor,
        seen: torch.Tensor,
        output_size: tuple[int, int] | None,
        labels_only: bool,
        need_output: bool,
    ) -> dict[str, Any] | None:
        size = (seen.shape[1], seen.shape[2])
        height, width = frame.shape[1:] if output_size is None else output_size
        wanted = (int(height), int(width))
        self._requests.append(_Request(self._num_frames, size, wanted, labels_only, need_output))
        self._kept[self._num_frames] = features
        self._num_frames += 1
        if self._num_frames <= self.lag:
            return None
        return self._answer(None)

    def _remaining(self) -> Iterator[dict[str, Any]]:
        while self._requests:
            answer = self._answer(self._num_frames)
            if answer is not None:
                yield answer

    def _answer(self, num_frames: int | None) -> dict[str, Any] | None:
        """The answer to the oldest request; `num_frames` is None while the video goes on."""
        request = self._requests[0]
        answer = None
        if request.need_output:
            if request.index not in self._scores:
                self._decode(request.index, num_frames)
            scores = self._scores.pop(request.index)
            answer = self._finalize(scores, request)
            answer["frame_index"] = request.index
        self._requests.popleft()
        oldest = request.index + 1 - self._model.window.lookback
        for index in [index for index in self._kept if index < oldest]:
            del self._kept[index]
        if request.index in self._kept:
            with torch.no_grad():
                self._kept[request.index] = self._model.keep(self._kept[request.index])
        return answer

    def _finalize(self, scores: torch.Tensor, request: _Request) -> dict[str, Any]:
        """What the caller asked for, from the scores [1, K, h, w] of a frame."""
        return finalize(scores, request.input_size, request.output_size, request.labels_only)

    def _decode_clip(self, clip: Sequence[Any], targets: Sequence[int]) -> Any:
        """What `_finalize` needs of the targets, nested tensors with one entry for each."""
        return self._model.decode(clip, targets)

    def _decode(self, index: int, num_frames: int | None) -> None:
        """Decode the clip of frame `index`; keeps the scores of all its wanted targets."""
        clip = self._model.window.clip(index, num_frames)
        wanted = {r.index for r in self._requests if r.need_output}
        targets = [frame for frame in clip.targets if frame in wanted]
        with torch.no_grad():
            scores = self._decode_clip(
                [self._kept[frame] for frame in clip.frames],
                [clip.frames.index(frame) for frame in targets],
            )
        self._scores.update(zip(targets, split(scores, len(targets)), strict=True))
        if self._model.window.disjoint:
            for frame in clip.frames:
                del self._kept[frame]


def finalize(
    scores: torch.Tensor,
    input_size: tuple[int, int],
    output_size: tuple[int, int],
    labels_only: bool,
) -> dict[str, Any]:
    """Scores [1, K, h, w] at the model's stride to the answer at `output_size`.

    Two bilinear resizes, to the network's input size and on to the output size, as published:
    one resize would give other numbers. Labels come without a map of all scores at full size.
    """
    if labels_only:
        return {"labels": resized_labels(scores, input_size, output_size)}
    return {"sem_seg": resize_scores(resize_scores(scores.float(), input_size), output_size)[0]}


def split(features: Any, count: int) -> list[Any]:
    """Nested features of `count` frames along dimension 0 to a list of features of one frame."""
    if isinstance(features, torch.Tensor):
        # A slice would keep the whole batch's memory alive.
        return list(features.split(1)) if count == 1 else [f.clone() for f in features.split(1)]
    if isinstance(features, dict):
        parts = {key: split(value, count) for key, value in features.items()}
        return [{key: parts[key][i] for key in parts} for i in range(count)]
    return [tuple(part) for part in zip(*(split(f, count) for f in features), strict=True)]


def move(features: Any, device: torch.device) -> Any:
    """Nested features on `device`."""
    if isinstance(features, torch.Tensor):
        return features.to(device)
    if isinstance(features, dict):
        return {key: move(value, device) for key, value in features.items()}
    return tuple(move(value, device) for value in features)
