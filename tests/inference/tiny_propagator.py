"""A propagator whose answers can be worked out by hand: every object moves one pixel a frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from vss2.modeling.meta_arch import VideoMaskPropagator
from vss2.modeling.propagation_session import GivenMask, PropagationSession


class TinySession(PropagationSession):
    """Holds one map for each object, as large as what the network sees.

    Args:
        model: in eval mode.
        protocol: "generic" is what prediction asks for.
        size: shorter side that frames and masks are resized to.
    """

    def __init__(
        self, model: VideoMaskPropagator, protocol: str = "davis", size: int | None = None
    ):
        self.protocol, self.size = protocol, size
        model.sessions.append(self)
        super().__init__(model)

    def _forget(self) -> None:
        self.maps = torch.zeros(0)
        self.steps = self.computed = 0

    def _advance(
        self, frame: torch.Tensor, features: Any, given: GivenMask | None, needed: bool
    ) -> torch.Tensor:
        height, width = frame.shape[1:]
        if self.size is not None:
            scale = self.size / min(height, width)
            height, width = round(height * scale), round(width * scale)
        maps = torch.zeros(len(self._ids), height, width)
        if self.maps.numel():
            maps[: len(self.maps), :, 1:] = self.maps[:, :, :-1]
        if given is not None:
            new = F.interpolate(given.maps[None], size=(height, width), mode="nearest")[0]
            maps *= 1 - new.amax(0)
            for identity, own in zip(given.ids, new, strict=True):
                maps[self._ids.index(identity)] = own
        self.maps = maps
        return torch.cat([(0.5 - maps.sum(0, keepdim=True)).clamp(min=0), maps])

    def _encode(self, frames: torch.Tensor) -> torch.Tensor:
        return self._model.encode(frames.float())

    def _drop(self, position: int) -> None:
        self.maps = torch.cat([self.maps[:position], self.maps[position + 1 :]])

    def _state(self) -> dict[str, Any]:
        return {"maps": self.maps}

    def _load_state(self, state: dict[str, Any]) -> None:
        self.maps = state["maps"]


class TinyPropagator(VideoMaskPropagator):
    """Networks that nothing calls; `sessions` lists those that were made."""

    session_type = TinySession

    def __init__(self, session: Mapping[str, Any] | None = None):
        self.sessions: list[TinySession] = []
        super().__init__(session=session)
        self.eval()

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def memorize(self, features: Any, masks: torch.Tensor) -> Any:
        return masks

    def read(self, features: Any, memory: Any) -> Any:
        return memory

    def decode(self, features: Any, readout: Any) -> torch.Tensor:
        return readout

    def losses(
        self, images: torch.Tensor, samples: Sequence[Mapping[str, Any]]
    ) -> dict[str, torch.Tensor]:
        return {"loss": images.sum()}
