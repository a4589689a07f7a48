"""The base of mask propagation, with a model that copies the last mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from vss2.errors import InputError
from vss2.modeling.meta_arch import VideoMaskPropagator
from vss2.modeling.propagation_session import GivenMask, PropagationSession


class CopySession(PropagationSession):
    """Answers with the newest masks; counts the frames that it encodes together."""

    def __init__(self, model: VideoMaskPropagator, *, weight: float = 1.0):
        self.weight = weight
        self.encoded: list[int] = []
        super().__init__(model)

    def _forget(self) -> None:
        self._maps: dict[int, torch.Tensor] = {}

    def _drop(self, position: int) -> None:
        del self._maps[self._ids[position]]

    def _state(self) -> dict[str, Any]:
        return {"maps": dict(self._maps)}

    def _load_state(self, state: dict[str, Any]) -> None:
        self._maps = dict(state["maps"])

    def _encode(self, frames: torch.Tensor) -> torch.Tensor:
        self.encoded.append(len(frames))
        return self._model.encode(self._model.normalize(frames))

    def _advance(
        self, frame: torch.Tensor, features: Any, given: GivenMask | None, needed: bool
    ) -> torch.Tensor | None:
        if features is None:
            self._encode(frame[None])
        if given is not None:
            self._maps.update(zip(given.ids, given.maps, strict=True))
        maps = self.weight * torch.stack([self._maps[i] for i in self._ids])
        return torch.cat([0.5 * torch.ones_like(maps[:1]), maps]) if needed else None


class Copier(VideoMaskPropagator):
    session_type = CopySession

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(1, keepdim=True)

    def memorize(self, features: Any, masks: torch.Tensor) -> torch.Tensor:
        return masks

    def read(self, features: Any, memory: Any) -> Any:
        return memory

    def decode(self, features: Any, readout: Any) -> torch.Tensor:
        return readout

    def losses(
        self, images: torch.Tensor, samples: Sequence[Mapping[str, Any]]
    ) -> dict[str, torch.Tensor]:
        return {"loss_size": images.square().sum()}


FRAMES = torch.randint(0, 256, (5, 3, 6, 8), dtype=torch.uint8)
MASK = torch.zeros(6, 8, dtype=torch.uint8)
MASK[1:3, 1:4] = 9
MASK[4:, 5:] = 4


def test_the_order_of_ids_is_not_that_of_appearance() -> None:
    session = Copier().eval().new_session()
    session.step(FRAMES[0], mask=MASK, objects=[9])
    answer = session.step(FRAMES[1], mask=MASK, objects=[4])
    assert answer["object_ids"] == [4, 9]
    assert torch.equal(answer["mask"], MASK)
    assert torch.equal(answer["prob"][1], (MASK == 4).float())


def test_equal_scores_go_to_the_background_and_then_to_the_lowest_id() -> None:
    maps = torch.ones(2, 6, 8)
    for weight, winner in ((0.5, 0), (1.0, 4)):
        session = Copier().eval().new_session(weight=weight)
        session.step(FRAMES[0], mask=maps[:1], objects=[9])
        answer = session.step(FRAMES[1], mask=maps[:1], objects=[4])
        assert (answer["mask"] == winner).all()


def test_run_encodes_in_batches_once_there_are_objects() -> None:
    session = Copier().eval().new_session()
    assert [answer["frame_index"] for answer in session.run(FRAMES, batch=2)] == [0, 1, 2, 3, 4]
    assert session.encoded == []
    session.reset()
    session.step(FRAMES[0], mask=MASK)
    answers = list(session.run(FRAMES[1:4], batch=2, labels_only=True))
    assert session.encoded == [1, 2, 1]
    assert all(torch.equal(answer["mask"], MASK) for answer in answers)
    with pytest.raises(InputError, match="batch must be at least 1"):
        next(session.run(FRAMES, batch=0))


def test_options_of_the_model_give_way_to_those_of_the_caller() -> None:
    model = Copier(session={"weight": 0.25}).eval()
    assert model.new_session().weight == 0.25
    assert model.new_session(weight=2.0).weight == 2.0
    with pytest.raises(InputError, match="no option 'top_k'; they take weight"):
        model.new_session(top_k=3)
    with pytest.raises(InputError, match="no option 'wait'"):
        Copier(session={"wait": 1}).eval().new_session()


def test_a_removed_object_can_come_back_as_a_new_one() -> None:
    session = Copier().eval().new_session()
    session.step(FRAMES[0], mask=MASK)
    answer = session.step(FRAMES[1], mask=MASK, objects=[9], remove=[9])
    assert answer["object_ids"] == [4, 9]
    assert session.step(FRAMES[2], remove=[4, 9])["object_ids"] == []


def test_a_state_carries_objects_and_place() -> None:
    model = Copier().eval()
    session, other = model.new_session(), model.new_session()
    session.step(FRAMES[0], mask=MASK)
    other.load_state_dict(session.state_dict())
    answer = other.step(FRAMES[1])
    assert answer["frame_index"] == 1
    assert torch.equal(answer["mask"], MASK)
    with pytest.raises(InputError, match="one size"):
        other.step(FRAMES[2][:, :4])


def test_small_frames_are_refused() -> None:
    with pytest.raises(InputError, match="at least 7 pixels"):
        Copier(min_size=7).eval().new_session().step(FRAMES[0])


def test_training_frames_are_normalised_and_padding_is_zero() -> None:
    model = Copier().train()
    sample = {"frames": FRAMES[:2], "image_size": (4, 8), "masks": MASK[None], "num_objects": 2}
    expected = model.normalize(FRAMES[:2, :, :4]).square().sum()
    assert torch.allclose(model([sample])["loss_size"], expected)


def test_eval_items_go_through_one_session_for_each_video() -> None:
    items = [
        {
            "frame": FRAMES[t],
            "video_id": video,
            "frame_index": t,
            "first_frame": t == 0,
            "last_frame": t == 1,
            "height": 6,
            "width": 8,
            "file_name": f"{video}{t}",
            "label_file": None,
            **({"mask": MASK, "objects": objects} if t == 0 else {}),
        }
        for video, objects in (("a", [4]), ("b", [9]))
        for t in range(2)
    ]
    answers = Copier().eval()(items)
    assert [(a["video_id"], a["frame_index"], a["object_ids"]) for a in answers] == [
        ("a", 0, [4]),
        ("a", 1, [4]),
        ("b", 0, [9]),
        ("b", 1, [9]),
    ]
    assert all("prob" not in answer for answer in answers)
    assert answers[3]["file_name"] == "b1"
