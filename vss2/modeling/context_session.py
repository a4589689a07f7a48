"""Sessions of label propagation: the first frame and the last few are the context of the next.

Jabri et al., Space-Time Correspondence as a Contrastive Random Walk, NeurIPS 2020, section 3.1 and
appendix; the handling of a video's first frames is that of its release.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vss2.errors import InputError
from vss2.layers.local_correlation import pack_rows

from .propagation_session import GivenMask, PropagationSession

if TYPE_CHECKING:
    from .meta_arch.label_propagator import LabelPropagator


class ContextEntry(NamedTuple):
    """What is remembered of one frame.

    Attributes:
        features: float [C, h, w], as `pack_rows` stores it.
        labels: float [1 + O, h, w], background first.
    """

    features: torch.Tensor
    labels: torch.Tensor


class Context(NamedTuple):
    """What one frame is compared with.

    Attributes:
        maps, radii, repeats: see `local_correlation`.
        labels: of every slot.
        top_k, temperature: of the softmax.
    """

    maps: list[torch.Tensor]
    radii: list[float | None]
    repeats: list[int]
    labels: list[torch.Tensor]
    top_k: int
    temperature: float


class ContextSession(PropagationSession):
    """One video whose labels follow features; frame 0 is the first frame with a mask.

    Soft labels live at the features' size and are fed back as they are. Frame t sees the long
    memory without limits, and frames t - context to t - 1 within the radius; what would lie before
    frame 0 is frame 0 again, so that the matches of the first frames are nearly hard, as published.
    Later frames with a mask join the long memory. Held are `context` frames and those of the long
    memory, however long the video is.

    Args:
        model: gives the features.
        context: previous frames that are seen.
        radius: of a frame's matches in previous frames, in cells; strict.
        top_k: matches in all frames together that vote.
        temperature: of their softmax.
        long_mem: frames that every later one sees. 0 is frame 0; m > 0 is frame m + 1, and frame 0
            for frames up to m + context, both as published.
        norm_mask: scale the labels of each cell to 0..1 in answers and, as published, in frame
            0 as the long memory sees it. Cells whose labels are all equal become 0.

    Raises:
        InputError: an option out of range.
    """

    _model: LabelPropagator

    def __init__(
        self,
        model: LabelPropagator,
        context: int = 20,
        radius: float = 12.0,
        top_k: int = 10,
        temperature: float = 0.05,
        long_mem: Sequence[int] = (0,),
        norm_mask: bool = False,
    ):
        if context < 1 or top_k < 1 or not radius > 0 or not temperature > 0:
            raise InputError(
                "context and top_k are at least 1, radius and temperature above 0, got "
                f"context={context}, top_k={top_k}, radius={radius}, temperature={temperature}"
            )
        if any(m < 0 for m in long_mem):
            raise InputError(f"long_mem holds frame numbers, got {list(long_mem)}")
        self.context = int(context)
        self.radius = float(radius)
        self.top_k = int(top_k)
        self.temperature = float(temperature)
        self.long_mem = tuple(int(m) for m in long_mem)
        self.norm_mask = bool(norm_mask)
        super().__init__(model)

    def _forget(self) -> None:
        self._count = 0
        self._entries: dict[int, ContextEntry] = {}
        self._anchor: torch.Tensor | None = None  # labels of frame 0 in the long memory
        self._marked: list[int] = []  # later frames with a mask
        self._has_background = True

    def _encode(self, frames: torch.Tensor) -> torch.Tensor:
        return self._model.encode(self._model.normalize(frames))

    def _advance(
        self,
        frame: torch.Tensor,
        features: torch.Tensor | None,
        given: GivenMask | None,
        needed: bool,
    ) -> torch.Tensor | None:
        if features is None:
            features = self._encode(frame[None])
        merged = None if given is None else self._spread(given)
        if self._count == 0:
            assert merged is not None, "the first frame is the one with a mask"
            entry = self._model.memorize(features, merged)
            self._has_background = bool(merged[0].any())
        else:
            packed = pack_rows(features[0])
            context = self._context()
            labels = self._model.decode(features, self._model.read(packed[None], context))
            if given is not None and merged is not None:
                said = self._model.memorize(features, merged).labels
                labels = self._merge(labels, said, given.ids)
                self._marked.append(self._count)
            entry = ContextEntry(packed, labels)
        shown = self._normalized(entry.labels) if self.norm_mask else entry.labels
        if self._count == 0:
            self._anchor = shown
        self._entries[self._count] = entry
        self._count += 1
        self._release()
        return shown

    def _context(self) -> Context:
        """Slots of the long memory, then those of frames count - context .. count - 1."""
        t = self._count
        long = [m + 1 if m > 0 and t >= self.context + m + 1 else 0 for m in self.long_mem]
        long += self._marked
        first = max(t - self.context, 0)
        recent = list(range(first, t))
        copies = max(self.context - t + 1, 1)  # of the first of them
        assert self._anchor is not None
        before = [self._entries[i].labels if i else self._anchor for i in long]
        after = [self._entries[first].labels] * copies
        after += [self._entries[i].labels for i in recent[1:]]
        return Context(
            maps=[self._entries[i].features for i in long + recent],
            radii=[None] * len(long) + [self.radius] * len(recent),
            repeats=[1] * len(long) + [copies] + [1] * (len(recent) - 1),
            labels=before + after,
            top_k=self.top_k,
            temperature=self.temperature,
        )

    def _release(self) -> None:
        """Forget what no later frame sees."""
        kept = {0, *(m + 1 for m in self.long_mem if m > 0), *self._marked}
        oldest = self._count - self.context
        self._entries = {i: e for i, e in self._entries.items() if i >= oldest or i in kept}

    def _spread(self, given: GivenMask) -> torch.Tensor:
        """Given maps as [1 + O, H, W]: others 0, background what is left of 1."""
        maps = given.maps.new_zeros(1 + len(self._ids), *given.maps.shape[1:])
        for row, identity in enumerate(given.ids):
            maps[1 + self._ids.index(identity)] = given.maps[row]
        maps[0] = (1 - given.maps.sum(0)).clamp(min=0)
        return maps

    def _merge(self, labels: torch.Tensor, said: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        """Propagated labels with what a mask says of some objects in their place."""
        count = 1 + len(self._ids)
        labels = _widened(labels, count)
        for i, entry in self._entries.items():
            self._entries[i] = entry._replace(labels=_widened(entry.labels, count))
        assert self._anchor is not None
        self._anchor = _widened(self._anchor, count)
        rows = [1 + self._ids.index(identity) for identity in ids]
        labels[0] += labels[rows].sum(0)  # where such an object was thought to be
        labels[rows] = 0
        labels *= (1 - said[rows].sum(0)).clamp(min=0)
        labels[rows] = said[rows]
        return labels

    def _normalized(self, labels: torch.Tensor) -> torch.Tensor:
        """Each cell's labels scaled to 0..1; a background that frame 0 lacks does not count."""
        counted = labels if self._has_background else labels[1:]
        least = counted.amin(0)
        scale = counted.amax(0) - least
        scaled = torch.where(scale > 0, (counted - least) / scale, 0.0)
        return scaled if self._has_background else torch.cat([labels[:1], scaled])

    def _drop(self, position: int) -> None:
        if len(self._ids) == 1:
            self._forget()
            return
        for i, entry in self._entries.items():
            self._entries[i] = entry._replace(labels=_without(entry.labels, 1 + position))
        assert self._anchor is not None
        self._anchor = _without(self._anchor, 1 + position)

    def _state(self) -> dict[str, Any]:
        return {
            "count": self._count,
            "entries": {i: tuple(entry) for i, entry in self._entries.items()},
            "anchor": self._anchor,
            "marked": list(self._marked),
            "has_background": self._has_background,
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        device = self._model.device
        self._count = state["count"]
        self._entries = {
            i: ContextEntry(pack_rows(features.to(device)), labels.to(device))
            for i, (features, labels) in state["entries"].items()
        }
        self._marked = list(state["marked"])
        anchor = state["anchor"]
        self._anchor = None if anchor is None else anchor.to(device)
        self._has_background = state["has_background"]


def _widened(labels: torch.Tensor, count: int) -> torch.Tensor:
    """A copy of the labels with channels of 0 behind, `count` together."""
    more = labels.new_zeros(count - labels.shape[0], *labels.shape[1:])
    return torch.cat([labels, more])


def _without(labels: torch.Tensor, channel: int) -> torch.Tensor:
    """The labels without one channel, which the background takes over."""
    rest = torch.cat([labels[:channel], labels[channel + 1 :]])
    rest[0] += labels[channel]
    return rest
