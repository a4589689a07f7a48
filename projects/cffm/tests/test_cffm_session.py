"""Streaming equals the window at once, however the video is cut."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from cffm_cases import clip_of, tiny_model

from vss2.data.transforms import TestResize
from vss2.errors import InputError
from vss2.modeling.losses import resize_scores
from vss2.testing.memory import STATM, memory_growth
from vss2.testing.saved_session import assert_goes_on_elsewhere

SIZE = (64, 96)
VIDEO = clip_of(5, *SIZE, frames=14)


@pytest.fixture(params=["cffm", "cffmpp"])
def case(request: pytest.FixtureRequest) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model and the options of its sessions and clips."""
    if request.param == "cffm":
        return tiny_model(), {}
    return tiny_model(plus_plus=True), {"prototypes": torch.randn(7, 16)}


def at_once(model: Any, index: int, options: dict[str, torch.Tensor]) -> torch.Tensor:
    """Scores of frame `index` from its whole window, without a session."""
    frames = VIDEO[list(model.window.clip(index).frames)]
    return resize_scores(model.predict_clip(frames, **options), SIZE)[0]


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_equals_the_window_at_once(case: tuple[Any, dict]) -> None:
    model, options = case
    session = model.new_session(**options)
    assert session.lag == 0
    for index, frame in enumerate(VIDEO):
        answer = session.step(frame)
        assert answer["frame_index"] == index
        assert_close(answer["sem_seg"], at_once(model, index, options))
    assert list(session.finish()) == []


def test_splits_of_the_video_with_saved_state_change_nothing(case: tuple[Any, dict]) -> None:
    model, options = case
    whole = [answer["sem_seg"] for answer in model.new_session(**options).run(VIDEO, batch=4)]
    assert len(whole) == len(VIDEO)
    for cut in range(1, len(VIDEO), 3):
        first = model.new_session(**options)
        for frame in VIDEO[:cut]:
            first.step(frame)
        memory = io.BytesIO()
        torch.save(first.state_dict(), memory)
        memory.seek(0)
        other = {name: torch.zeros_like(value) for name, value in options.items()}
        second = model.new_session(**other)
        second.load_state_dict(torch.load(memory, weights_only=True))
        for index in range(cut, min(cut + 4, len(VIDEO))):
            assert_close(second.step(VIDEO[index])["sem_seg"], whole[index])


def test_each_frame_is_encoded_once_and_only_pooled_maps_stay() -> None:
    model = tiny_model()
    images = []
    model.backbone.register_forward_hook(lambda _m, inputs, _o: images.append(len(inputs[0])))
    session = model.new_session()
    for frame in VIDEO:
        session.step(frame)
    assert sum(images) == len(VIDEO)
    kept = session.state_dict()["kept"]
    assert sorted(kept) == list(range(len(VIDEO) - 9, len(VIDEO)))
    # 64x96 is 8x12 at stride 8: 2x2 windows of 14 cells, two blocks, 16 channels of 4 bytes.
    for features in kept.values():
        maps = [grid for block in features["pooled"] for grid in block]
        assert features.keys() == {"pooled"}
        assert sum(grid.numel() * grid.element_size() for grid in maps) == 4 * 14 * 2 * 16 * 4
        assert all(grid.untyped_storage().nbytes() <= 4 * grid.numel() for grid in maps)


def test_early_frames_stand_alone_or_follow_the_published_table() -> None:
    model = tiny_model()
    for index in range(3):
        assert model.window.clip(index).frames == (index,)
    assert model.window.clip(3).frames == (0, 1, 2, 3)
    assert model.window.clip(9).frames == (0, 3, 6, 9)
    other = tiny_model(window=(-6, -4, -2, 0))
    assert other.window.clip(5).frames == (5,)
    assert other.window.clip(6).frames == (0, 2, 4, 6)
    session = other.new_session()
    for index, frame in enumerate(VIDEO[:8]):
        answer = session.step(frame)["sem_seg"]
        assert_close(answer, at_once(other, index, {}))


def test_a_video_of_one_frame(case: tuple[Any, dict]) -> None:
    model, options = case
    (answer,) = model.new_session(**options).run(VIDEO[:1], labels_only=True)
    expected = at_once(model, 0, {})
    assert torch.equal(answer["labels"], expected.argmax(0).to(torch.uint8))
    assert list(model.new_session(**options).run([])) == []


def test_a_session_stretches_to_multiples_of_32(case: tuple[Any, dict]) -> None:
    model, options = case
    video = clip_of(1, 60, 75, frames=5)
    resize = TestResize((75, 60), 32)
    stretched = [
        torch.from_numpy(resize(frame.permute(1, 2, 0).numpy())).permute(2, 0, 1) for frame in video
    ]
    assert stretched[0].shape == (3, 64, 96)
    expected = list(model.new_session(**options).run(stretched, output_size=(60, 75)))
    answers = list(model.new_session(**options).run(video, batch=2))
    session = model.new_session(**options)
    for frame, answer, other in zip(video, answers, expected, strict=True):
        assert answer["sem_seg"].shape == (5, 60, 75)
        assert_close(answer["sem_seg"], other["sem_seg"])
        assert_close(session.step(frame)["sem_seg"], other["sem_seg"])


def test_frames_skipped_for_output_still_serve_as_references() -> None:
    model = tiny_model()
    session = model.new_session()
    for frame in VIDEO[:9]:
        assert session.step(frame, need_output=False) is None
    assert_close(session.step(VIDEO[9])["sem_seg"], at_once(model, 9, {}))


def test_evaluation_items_step_a_session_with_their_prototypes(case: tuple[Any, dict]) -> None:
    model, options = case
    model.eval_output = "sem_seg"
    items = [
        {
            "frame": frame,
            "video_id": "v",
            "frame_index": index,
            "first_frame": index == 0,
            "last_frame": index == 3,
            "height": SIZE[0],
            "width": SIZE[1],
            "session": options,
        }
        for index, frame in enumerate(VIDEO[:4])
    ]
    answers = model(items)
    assert [answer["frame_index"] for answer in answers] == [0, 1, 2, 3]
    assert_close(answers[3]["sem_seg"], at_once(model, 3, options))


@pytest.mark.parametrize("length", [2, 3, 5])
def test_clips_of_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(InputError, match=rf"1 or 4 frames .* got {length}"):
        tiny_model().predict_clip(VIDEO[:length])


def test_bad_sizes_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(InputError, match=r"60x75.*multiples of 32"):
        model.predict_clip(clip_of(0, 60, 75))
    with pytest.raises(InputError, match="too small"):
        model.new_session().step(clip_of(0, 20, 64, frames=1)[0])
    session = model.new_session()
    session.step(VIDEO[0])
    with pytest.raises(InputError, match="one size"):
        session.step(clip_of(0, 96, 96, frames=1)[0])
    with pytest.raises(InputError, match="uint8"):
        session.step(VIDEO[0].float())
    with pytest.raises(InputError, match="eval mode"):
        tiny_model().train().new_session()


@pytest.mark.parametrize("case", ["cffmpp"], indirect=True)
def test_bad_prototypes_are_refused(case: tuple[Any, dict]) -> None:
    model, options = case
    good = options["prototypes"]
    bad = good.clone()
    bad[3, 2] = float("nan")
    for prototypes, message in (
        (None, "needs the prototypes"),
        ("onlin", "got str"),
        (good[:, :8], r"\(7, 8\)"),
        (good[:0], r"\(0, 16\)"),
        (bad, "NaN"),
    ):
        with pytest.raises(InputError, match=message):
            model.new_session(prototypes=prototypes)
        with pytest.raises(InputError, match=message):
            model.predict_clip(VIDEO[:4], prototypes=prototypes)
    # The published files hold (1, P, C).
    published = model.predict_clip(VIDEO[:4], prototypes=good[None])
    assert torch.equal(published, model.predict_clip(VIDEO[:4], **options))


def new_session() -> Any:
    return tiny_model().new_session()


def test_saved_state_goes_on_in_another_process(tmp_path: Path) -> None:
    assert_goes_on_elsewhere(new_session, VIDEO[:13], 10, tmp_path)


@pytest.mark.skipif(not STATM.exists(), reason="the system does not tell the memory in use")
@pytest.mark.parametrize("frames", [200, pytest.param(1000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("prototypes", [None, "online"])
def test_memory_stays_flat(prototypes: str | None, frames: int) -> None:
    options = {"plus_plus": True, "prototypes": prototypes} if prototypes else {}
    model = tiny_model(**options)
    # A session that forgot nothing would hold 4 MB more after 200 frames of this narrow model.
    assert memory_growth(model.new_session(), frames, (128, 192)) < 2
