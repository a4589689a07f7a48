"""Base of mask propagation sessions: objects, given masks and answers, apart from the method."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vss2.errors import InputError

from .losses import resize_scores
from .session import VideoSession, check_frame, split

if TYPE_CHECKING:
    from .meta_arch import VideoMaskPropagator


class GivenMask(NamedTuple):
    """What the user says of some objects in one frame.

    Attributes:
        ids: the user's ids, ascending, each once.
        maps: float32 [len(ids), H, W] in [0, 1] on the model's device; a known object may be
            without pixels: it is absent in this frame.
    """

    ids: list[int]
    maps: torch.Tensor


class PropagationSession(VideoSession):
    """One video whose objects are propagated from given masks; answers each frame at once.

    A kind of session defines `_advance`: within one step it propagates, merges a given mask and
    remembers; and `_state`, `_load_state` and `_forget` for what it holds. This class checks what
    comes in, keeps the list of objects and makes the answers.

    Args:
        model: in eval mode.
    """

    lag = 0

    def __init__(self, model: VideoMaskPropagator):
        if model.training:
            raise InputError("a session needs a model in eval mode; call model.eval() first")
        self._model = model
        self.reset()

    # What a kind of session defines

    @abstractmethod
    def _advance(
        self, frame: torch.Tensor, features: Any, given: GivenMask | None, needed: bool
    ) -> torch.Tensor | None:
        """Go on by one frame.

        Args:
            frame: uint8 [3, H, W] on the model's device.
            features: what `_encode` gave for it, or None where that has not been asked for.
            given: masks to merge after propagation; their new objects are in `_ids` already.
            needed: whether the result is; False leaves the method free not to compute it.

        Returns:
            float [1 + O, h, w] at whatever size `_scores` takes, background first, then the
            objects in the order of `_ids`; None when there are no objects or it was not computed.
        """

    @abstractmethod
    def _encode(self, frames: torch.Tensor) -> Any:
        """Features of frames uint8 [N, 3, H, W], nested tensors with N in dimension 0."""

    @abstractmethod
    def _forget(self) -> None:
        """Begin with an empty memory."""

    @abstractmethod
    def _drop(self, position: int) -> None:
        """Forget the object at `position` of `_ids`, which still lists it."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """The memory as tensors, numbers and containers."""

    @abstractmethod
    def _load_state(self, state: dict[str, Any]) -> None:
        """Take over what `_state` of another session gave; tensors may be on any device."""

    def _scores(self, maps: torch.Tensor, output_size: tuple[int, int]) -> torch.Tensor:
        """`_advance`'s result at `output_size`: float [1 + O, H', W']."""
        return resize_scores(maps[None].float(), output_size)[0]

    # What all kinds share

    @property
    def object_ids(self) -> list[int]:
        """The user's ids of the objects in this video, ascending."""
        return sorted(self._ids)

    def reset(self) -> None:
        self._num_frames = 0
        self._finished = False
        self._input_size: tuple[int, int] | None = None
        self._ids: list[int] = []  # in order of appearance
        self._forget()

    def step(
        self,
        frame: torch.Tensor,
        mask: torch.Tensor | None = None,
        objects: Sequence[int] | None = None,
        remove: Sequence[int] = (),
        output_size: tuple[int, int] | None = None,
        labels_only: bool = False,
        need_output: bool = True,
    ) -> dict[str, Any] | None:
        """Take the next frame: propagate the objects to it, then merge the mask.

        Args:
            frame: uint8 [3, H, W] RGB; all frames of a video have one size.
            mask: ids [H, W] of an integer type, 0 where nothing is said; or float maps
                [O, H, W] in [0, 1], one for each of `objects`.
            objects: ids that the mask speaks for, by default those in it. A listed id without
                pixels is absent in this frame; other objects keep their prediction. An id that
                the session does not know yet is a new object once it has pixels.
            remove: ids to forget before this frame.
            output_size: (H', W') of the answer; default the frame's own size.
            labels_only: leave `prob` out of the answer.
            need_output: False for a frame that nobody asks for.

        Returns:
            None without `need_output`, else a dict with `frame_index`; `object_ids`, ascending;
            `mask` [H', W'] with these ids, uint8, or int32 when one of them is above 255; `prob`
            float [1 + O, H', W'], background first. Before the first object: mask 0, no ids.

        Raises:
            InputError: wrong type, shape or values; an unknown id to remove; a finished session.
        """
        self._check_frame(frame)
        given = self._given(mask, objects, frame)
        return self._take(frame, None, given, remove, output_size, labels_only, need_output)

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
            for frame in chunk:
                self._check_frame(frame)
            encoded: list[Any] = [None] * len(chunk)
            if self._ids and len(chunk) > 1:
                with torch.no_grad():
                    features = self._encode(torch.stack(chunk).to(self._model.device))
                encoded = split(features, len(chunk))
            for frame, features in zip(chunk, encoded, strict=True):
                answer = self._take(frame, features, None, (), output_size, labels_only, True)
                assert answer is not None
                yield answer
        yield from self.finish()

    def finish(self) -> Iterator[dict[str, Any]]:
        self._finished = True
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        return {
            "num_frames": self._num_frames,
            "finished": self._finished,
            "input_size": self._input_size,
            "ids": list(self._ids),
            "memory": self._state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        size = state["input_size"]
        self._num_frames = state["num_frames"]
        self._finished = state["finished"]
        self._input_size = None if size is None else (size[0], size[1])
        self._ids = list(state["ids"])
        self._load_state(state["memory"])

    @torch.no_grad()
    def _take(
        self,
        frame: torch.Tensor,
        features: Any,
        given: GivenMask | None,
        remove: Sequence[int],
        output_size: tuple[int, int] | None,
        labels_only: bool,
        need_output: bool,
    ) -> dict[str, Any] | None:
        self._remove(remove)
        if given is not None:
            given = self._welcome(given)
        maps = None
        if self._ids:
            maps = self._advance(frame.to(self._model.device), features, given, need_output)
        self._num_frames += 1
        if not need_output:
            return None
        height, width = frame.shape[1:] if output_size is None else output_size
        return self._answer(maps, (int(height), int(width)), labels_only)

    def _answer(
        self, maps: torch.Tensor | None, size: tuple[int, int], labels_only: bool
    ) -> dict[str, Any]:
        if maps is None:
            prob = torch.ones(1, *size, device=self._model.device)
        else:
            # Ascending ids, so that the lowest wins among equals whatever came first.
            order = sorted(range(len(self._ids)), key=self._ids.__getitem__)
            index = torch.tensor([0, *(position + 1 for position in order)], device=maps.device)
            prob = self._scores(maps[index], size)
        ids = torch.tensor([0, *self.object_ids], device=prob.device)
        kind = torch.int32 if int(ids.max()) > 255 else torch.uint8
        answer: dict[str, Any] = {
            "frame_index": self._num_frames - 1,
            # `max` takes the first among equals as `argmax` does, and is much faster.
            "mask": ids.to(kind)[prob.max(0).indices],
            "object_ids": self.object_ids,
        }
        if not labels_only:
            answer["prob"] = prob
        return answer

    def _remove(self, ids: Sequence[int]) -> None:
        for identity in ids:
            if identity not in self._ids:
                raise InputError(f"object {identity} to remove is not one of {self.object_ids}")
            position = self._ids.index(identity)
            self._drop(position)
            del self._ids[position]

    def _welcome(self, given: GivenMask) -> GivenMask | None:
        """Add new objects that have pixels to `_ids`; drop unknown ones that have none."""
        seen = given.maps.flatten(1).any(1).tolist()
        rows = [row for row, i in enumerate(given.ids) if seen[row] or i in self._ids]
        if not rows:
            return None
        ids = [given.ids[row] for row in rows]
        self._ids.extend(i for i in ids if i not in self._ids)
        return GivenMask(ids, given.maps[rows])

    def _check_frame(self, frame: torch.Tensor) -> None:
        if self._finished:
            raise InputError("this session is finished; call reset() before the next video")
        check_frame(frame)
        size = (frame.shape[1], frame.shape[2])
        if self._input_size not in (None, size):
            raise InputError(
                f"frame {self._num_frames} is {size[0]}x{size[1]}, but the frames before it are "
                f"{self._input_size[0]}x{self._input_size[1]}: a video has frames of one size"
            )
        self._model.check_size(*size)
        self._input_size = size

    def _given(
        self, mask: torch.Tensor | None, objects: Sequence[int] | None, frame: torch.Tensor
    ) -> GivenMask | None:
        """The mask of a step, checked; None when it says nothing."""
        if mask is None:
            if objects is not None:
                raise InputError(f"objects={list(objects)} came without a mask to speak of")
            return None
        ids = None if objects is None else _checked_ids(objects)
        if not isinstance(mask, torch.Tensor):
            raise InputError(f"a mask is a tensor, got {type(mask).__name__}")
        if tuple(mask.shape[-2:]) != tuple(frame.shape[-2:]) or mask.ndim not in (2, 3):
            raise InputError(
                f"a mask is (H, W) ids or (O, H, W) maps of its frame's size "
                f"{tuple(frame.shape[-2:])}, got {tuple(mask.shape)}"
            )
        mask = mask.to(self._model.device)
        given = _from_ids(mask, ids) if mask.ndim == 2 else _from_maps(mask, ids)
        return given if given.ids else None


def _checked_ids(objects: Sequence[int]) -> list[int]:
    ids = [int(i) for i in objects]
    if any(i < 1 for i in ids) or len(set(ids)) != len(ids):
        raise InputError(f"objects are ids above 0, each once, got {list(objects)}")
    return ids


def _from_ids(mask: torch.Tensor, ids: list[int] | None) -> GivenMask:
    if mask.dtype.is_floating_point or mask.dtype.is_complex:
        raise InputError(
            f"a mask (H, W) holds ids of an integer type, got {mask.dtype}; soft maps are "
            "(O, H, W) with objects"
        )
    found = mask.unique().tolist()
    if found and found[0] < 0:
        raise InputError(f"ids in a mask are 0 (nothing said) or above, found {int(found[0])}")
    ids = sorted([int(i) for i in found if i] if ids is None else ids)
    wanted = torch.tensor(ids, device=mask.device).view(-1, 1, 1)
    return GivenMask(ids, (mask == wanted).float())


def _from_maps(mask: torch.Tensor, ids: list[int] | None) -> GivenMask:
    if ids is None or len(ids) != mask.shape[0]:
        count = "none" if ids is None else len(ids)
        raise InputError(
            f"soft maps (O, H, W) need one id each in objects: {mask.shape[0]} maps, {count} ids"
        )
    maps = mask.float()
    if not bool(((maps >= 0) & (maps <= 1)).all()):
        raise InputError("soft maps hold values between 0 and 1")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return GivenMask([ids[i] for i in order], maps[order])
