"""Streaming of CFFM: frames are stretched as published, prototypes go with their video."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vss2.data.transforms import TestResize
from vss2.errors import InputError
from vss2.modeling.session import WindowSession, move

from .head import PrototypeKeys
from .online import OnlinePrototypes

if TYPE_CHECKING:
    from .model import CFFM, CFFMPlusPlus


class StretchingSession(WindowSession):
    """The session of CFFM.

    Frames whose sides are no multiples of 32 are stretched to the next ones, as published; the
    answer comes at the frame's own size unless `output_size` says otherwise.
    """

    _model: CFFM

    def _prepare(self, frame: torch.Tensor) -> torch.Tensor:
        if min(frame.shape[1:]) < self._model.min_size:
            return frame  # too small as it is, which the model says
        height, width = frame.shape[1:]
        divisor = self._model.size_divisor
        if height % divisor == 0 and width % divisor == 0:
            return frame
        resize = TestResize((max(height, width), min(height, width)), divisor)
        image = resize(frame.permute(1, 2, 0).contiguous().cpu().numpy())
        return torch.from_numpy(image).permute(2, 0, 1).to(frame.device)


class PrototypeSession(StretchingSession):
    """The session of CFFM++: the prototypes of its video, projected once, go with every frame.

    Args:
        model: a CFFM++.
        prototypes: float [P, C].
    """

    _model: CFFMPlusPlus

    def __init__(self, model: CFFMPlusPlus, prototypes: torch.Tensor):
        super().__init__(model)
        self._set_prototypes(prototypes)

    def _set_prototypes(self, prototypes: torch.Tensor) -> None:
        self._prototypes = prototypes.to(self._model.device)
        with torch.no_grad():
            self._keys: PrototypeKeys = self._model.prototype_keys(self._prototypes[None])

    def _encode(self, frames: torch.Tensor) -> list[Any]:
        return [features | {"prototypes": self._keys} for features in super()._encode(frames)]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"prototypes": self._prototypes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not isinstance(state.get("prototypes"), torch.Tensor):
            raise InputError("this state is not of a session with the prototypes of a whole video")
        super().load_state_dict(state)
        self._set_prototypes(move(state["prototypes"], self._model.device))


class OnlinePrototypeSession(StretchingSession):
    """The session of CFFM++ whose prototypes come from the frames up to the answered one.

    Beside what a window needs it holds an `OnlinePrototypes`, bounded too. As that depends on all
    earlier frames, a session that begins in the middle of a video answers otherwise.
    """

    _model: CFFMPlusPlus
    window_only = False

    def reset(self) -> None:
        super().reset()
        self._prototypes = OnlinePrototypes()

    def _encode(self, frames: torch.Tensor) -> list[Any]:
        encoded = []
        for features in super()._encode(frames):
            tokens = features["stride8"][0].flatten(1).T.float()
            with torch.no_grad():
                keys = self._model.prototype_keys(self._prototypes.update(tokens)[None])
            encoded.append(features | {"prototypes": keys})
        return encoded

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"prototypes": self._prototypes.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not isinstance(state.get("prototypes"), dict):
            raise InputError("this state is not of a session with online prototypes")
        super().load_state_dict(state)
        self._prototypes.load_state_dict(state["prototypes"], self._model.device)
