"""Streaming with a space-time memory that keeps frames of the video and their masks (STCN)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from vss2.errors import InputError
from vss2.layers.soft_aggregation import soft_aggregate

from .losses import resize_scores
from .memory_bank import MemoryBank
from .propagation_session import GivenMask, PropagationSession

if TYPE_CHECKING:
    from .meta_arch import VideoMaskPropagator

PROTOCOLS = ("davis", "youtube_vos", "generic")


class Placement(NamedTuple):
    """Where a frame lies in what the network sees.

    Attributes:
        size: (h, w) after the resize.
        padding: left, right, top and bottom, to multiples of the model's stride.
    """

    size: tuple[int, int]
    padding: tuple[int, int, int, int]


def placement(height: int, width: int, short_side: int | None, divisor: int) -> Placement:
    """The published resize and padding: an odd pixel of padding goes to the right and bottom."""
    short, long = min(height, width), max(height, width)
    if short_side is not None and short != short_side:
        long = int(short_side * long / short)
        height, width = (short_side, long) if height <= width else (long, short_side)
    down, across = -height % divisor, -width % divisor
    padding = (across // 2, across - across // 2, down // 2, down - down // 2)
    return Placement((height, width), padding)


class _Pending(NamedTuple):
    """A frame that goes into memory when the next one comes."""

    features: Any
    prob: torch.Tensor
    temporary: bool


class MemorySession(PropagationSession):
    """The session of models with a space-time memory.

    A frame with a given mask is remembered, and every `mem_every`-th one: counted from the
    video's first frame in the protocol "davis", from the last remembered frame in the others. An
    object's memory begins with the frame in which it appears. A frame enters the memory when the
    next one comes, so the last frame of a video costs nothing more.

    Held at any time: the memory, and the features of one frame.

    Args:
        model: in eval mode; `memorize` gives a `MemoryEntry`, `decode` probabilities [O, h, w],
            and `stride` is what padded sides are multiples of.
        protocol: "davis", "youtube_vos" or "generic".
        mem_every: frames from one remembered frame to the next.
        top_k: memory positions that answer a query.
        include_last: the frame before is remembered too, until the next one.
        max_memory_frames: bound of the memory for videos without end, at least 2, the frame of
            `include_last` not counted; which frames go is `MemoryBank`'s rule. None = none goes.
        size: shorter side that frames are resized to, bicubic after normalising, as published
            for YouTube-VOS; masks nearest. None = as they come.
        flip: the network sees mirrored frames; answers are mirrored back.
        kernel_sigma: see `MemoryBank`.
        amp: mixed precision: float16 on a GPU, bfloat16 on a CPU.

    Raises:
        InputError: an option out of range.
    """

    def __init__(
        self,
        model: VideoMaskPropagator,
        *,
        protocol: str = "davis",
        mem_every: int = 5,
        top_k: int = 20,
        include_last: bool = False,
        max_memory_frames: int | None = None,
        size: int | None = None,
        flip: bool = False,
        kernel_sigma: float | None = None,
        amp: bool = False,
    ):
        if protocol not in PROTOCOLS:
            raise InputError(f"protocol is one of {', '.join(PROTOCOLS)}, got {protocol!r}")
        _check_least("mem_every", mem_every, 1)
        _check_least("top_k", top_k, 1)
        _check_least("max_memory_frames", max_memory_frames, 2)
        _check_least("size", size, 16)
        if kernel_sigma is not None and not kernel_sigma > 0:
            raise InputError(f"kernel_sigma is above 0 or None, got {kernel_sigma}")
        self._absolute = protocol == "davis"
        self._mem_every = mem_every
        self._include_last = include_last
        self._size = size
        self._flip = flip
        self._amp = amp
        self._bank = MemoryBank(top_k, kernel_sigma, max_memory_frames)
        super().__init__(model)
        self._network = model.for_inference(amp)

    @property
    def num_memory_frames(self) -> int:
        """Frames in memory, counting one that `include_last` holds for the moment."""
        return self._bank.num_frames

    def memory_positions(self) -> dict[int, int]:
        """Positions held for each object, without the frame of `include_last`."""
        met = zip(self._ids, range(self._bank.num_objects), strict=False)
        return {identity: self._bank.num_positions(position) for identity, position in met}

    def _forget(self) -> None:
        self._bank.clear()
        self._pending: _Pending | None = None
        self._last = 0  # the frame remembered last

    def _drop(self, position: int) -> None:
        self._remember_pending()
        self._bank.drop_object(position)

    def _state(self) -> dict[str, Any]:
        self._remember_pending()
        return {"bank": self._bank.state_dict(), "last": self._last}

    def _load_state(self, state: dict[str, Any]) -> None:
        self._pending = None
        self._bank.load_state_dict(state["bank"], self._model.device)
        self._last = state["last"]

    def _advance(
        self, frame: torch.Tensor, features: Any, given: GivenMask | None, needed: bool
    ) -> torch.Tensor | None:
        self._remember_pending()
        index = self._num_frames
        since = index if self._absolute else index - self._last
        due = since % self._mem_every == 0 if self._absolute else since >= self._mem_every
        remember = due or given is not None
        if not (remember or self._include_last or needed):
            return None
        if features is None:
            features = self._encode(frame[None])
        prob = self._propagate(features)
        if given is not None:
            prob = self._merged(prob, given)
        if remember:
            self._last = index
        if remember or self._include_last:
            self._pending = _Pending(features, prob[1:], not remember)
        return prob

    def _scores(self, maps: torch.Tensor, output_size: tuple[int, int]) -> torch.Tensor:
        (height, width), (left, _, top, _) = self._placement()
        maps = maps[:, top : top + height, left : left + width]
        maps = resize_scores(maps[None], output_size)[0]
        return maps.flip(-1) if self._flip else maps

    def _encode(self, frames: torch.Tensor) -> Any:
        images = self._placed(self._model.normalize(frames), "bicubic")
        with self._precision():
            return self._network.encode(images)

    def _placement(self) -> Placement:
        assert self._input_size is not None
        return placement(*self._input_size, self._size, self._model.stride)

    def _placed(self, maps: torch.Tensor, mode: str) -> torch.Tensor:
        """Maps [N, C, H, W] of a frame as the network sees them: resized, mirrored, padded."""
        size, padding = self._placement()
        if tuple(maps.shape[-2:]) != size:
            maps = F.interpolate(maps, size=size, mode=mode)
        if self._flip:
            maps = maps.flip(-1)
        return F.pad(maps, padding)

    def _propagate(self, features: Any) -> torch.Tensor:
        """Probabilities of background and objects [1 + O, h, w]; objects not met before are 0."""
        known = self._bank.num_objects
        if known:
            with self._precision():
                readout = self._network.read(features, self._bank)
                prob = self._network.decode(features, readout)
            prob = soft_aggregate(prob)
        else:
            (height, width), (left, right, top, bottom) = self._placement()
            prob = torch.zeros(
                1, top + height + bottom, left + width + right, device=self._model.device
            )
        return F.pad(prob, (0, 0, 0, 0, 0, len(self._ids) - known))

    def _merged(self, prob: torch.Tensor, given: GivenMask) -> torch.Tensor:
        """The given masks take the place of what was propagated where they lie."""
        maps = self._placed(given.maps[None], "nearest")[0]
        prob = prob[1:] * (1 - maps.amax(0))
        for identity, own in zip(given.ids, maps, strict=True):
            prob[self._ids.index(identity)] = own
        return soft_aggregate(prob)

    def _remember_pending(self) -> None:
        if self._pending is None:
            return
        features, prob, temporary = self._pending
        self._pending = None
        with torch.no_grad(), self._precision():
            entry = self._network.memorize(features, prob)
        self._bank.append(entry, temporary)

    def _precision(self) -> AbstractContextManager[Any]:
        kind = self._model.device.type
        dtype = torch.float16 if kind == "cuda" else torch.bfloat16
        return torch.autocast(kind, dtype=dtype, enabled=self._amp)


def _check_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise InputError(f"{name} is at least {least}, got {value}")
