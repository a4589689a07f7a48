"""Streaming of MRCFA: equal to the window at once, small state, published early frames."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from vss2.errors import InputError
from vss2.modeling.backbone import MixTransformer
from vss2.modeling.losses import resize_scores
from vss2.projects.mrcfa import MRCFA
from vss2.testing.memory import STATM, memory_growth
from vss2.testing.saved_session import assert_goes_on_elsewhere

PUBLISHED_CLIPS = {
    0: (0,),
    1: (1,),
    2: (2,),
    3: (0, 1, 2, 3),
    4: (0, 2, 3, 4),
    5: (0, 2, 4, 5),
    6: (0, 2, 4, 6),
    7: (0, 3, 5, 7),
    8: (0, 3, 6, 8),
    9: (0, 3, 6, 9),
    11: (2, 5, 8, 11),
}


def build(**options) -> MRCFA:
    torch.manual_seed(0)
    return MRCFA(backbone=MixTransformer("b0"), num_classes=5, **options).eval()


def video(count: int, height: int = 64, width: int = 96) -> torch.Tensor:
    """A picture that drifts, with noise: references say something of the target."""
    generator = torch.Generator().manual_seed(1)
    still = torch.rand(3, height // 8, width // 8 + count, generator=generator)
    large = torch.nn.functional.interpolate(still[None], scale_factor=8)[0]
    frames = torch.stack([large[..., 4 * t : 4 * t + width] for t in range(count)])
    noisy = 220 * frames + 30 * torch.rand(frames.shape, generator=generator)
    return noisy.to(torch.uint8)


@pytest.fixture(scope="module")
def model() -> MRCFA:
    return build()


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return video(13)


@pytest.fixture(scope="module")
def whole(model: MRCFA, frames: torch.Tensor) -> list[torch.Tensor]:
    return [answer["sem_seg"] for answer in model.new_session().run(frames)]


def test_session_equals_the_published_windows_at_once(
    model: MRCFA, frames: torch.Tensor, whole: list[torch.Tensor]
) -> None:
    alone = [model.predict_clip(frame[None]) for frame in frames]
    for index, clip in PUBLISHED_CLIPS.items():
        at_once = model.predict_clip(frames[list(clip)])
        assert at_once.shape == (1, 5, 16, 24)
        expected = resize_scores(at_once, (64, 96))[0]
        error = (whole[index] - expected).abs().max()
        assert error <= 1e-5 * expected.abs().max(), f"frame {index}"
        if index > 2:
            assert (at_once - alone[index]).abs().max() > 0.1


def test_every_reference_counts(model: MRCFA, frames: torch.Tensor) -> None:
    clip = frames[[0, 3, 6, 9]]
    expected = model.predict_clip(clip)
    for position in range(4):
        changed = clip.clone()
        changed[position] = frames[12].flip(-1)
        difference = (model.predict_clip(changed) - expected).abs().max()
        assert difference > 1e-3 * expected.abs().max(), f"frame {position} of the clip"


@pytest.mark.parametrize("cut", [1, 3, 9])
def test_saved_state_goes_on_elsewhere(
    model: MRCFA, frames: torch.Tensor, whole: list[torch.Tensor], cut: int
) -> None:
    first, second = model.new_session(), model.new_session()
    for frame in frames[:cut]:
        first.step(frame, labels_only=True)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for index in range(cut, len(frames)):
        answer = second.step(frames[index])
        assert answer["frame_index"] == index
        assert (answer["sem_seg"] - whole[index]).abs().max() <= 1e-5 * whole[index].abs().max()


def test_encoding_in_batches_changes_no_answer(
    model: MRCFA, frames: torch.Tensor, whole: list[torch.Tensor]
) -> None:
    for answer, expected in zip(model.new_session().run(frames, batch=5), whole, strict=True):
        error = (answer["sem_seg"] - expected).abs().max()
        assert error <= 1e-5 * expected.abs().max()


def test_answered_frames_keep_reference_tokens_alone(model: MRCFA) -> None:
    session = model.new_session()
    for index, frame in enumerate(video(24)):
        session.step(frame, labels_only=True, need_output=index % 3 > 0)
        kept = session.state_dict()["kept"]
        assert len(kept) == min(index + 1, 9)
        for tokens in kept.values():
            assert {name: tuple(part.shape) for name, part in tokens.items()} == {
                "key2": (1, 6, 64),
                "key3": (1, 6, 160),
                "key4": (1, 6, 256),
                "value": (1, 6, 256),
            }
            # The number of the README: tokens x (C2 + C3 + C4 + E) floats, and no more behind it.
            stored = sum(part.untyped_storage().nbytes() for part in tokens.values())
            assert stored == 6 * (64 + 160 + 256 + 256) * 4


def test_frames_are_encoded_once(model: MRCFA, frames: torch.Tensor) -> None:
    calls = []
    hook = model.backbone.register_forward_hook(lambda _m, inputs, _o: calls.append(inputs[0]))
    list(model.new_session().run(frames, labels_only=True))
    hook.remove()
    assert [len(images) for images in calls] == [1] * len(frames)


def test_state_survives_a_file(model: MRCFA, frames: torch.Tensor, tmp_path: Path) -> None:
    session = model.new_session()
    for frame in frames[:10]:
        session.step(frame, labels_only=True)
    torch.save(session.state_dict(), tmp_path / "state.pt")
    per_frame = 6 * (64 + 160 + 256 + 256) * 4
    assert (tmp_path / "state.pt").stat().st_size < 9 * per_frame + 30_000


def test_bad_frames_are_named(model: MRCFA) -> None:
    session = model.new_session()
    for size in ((64, 90), (61, 96)):
        with pytest.raises(InputError, match=r"multiples of 32, such as 64x96"):
            session.step(torch.zeros(3, *size, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"64x64 are too small.* 4 tokens"):
        session.step(torch.zeros(3, 64, 64, dtype=torch.uint8))
    assert session.step(torch.zeros(3, 96, 64, dtype=torch.uint8))["frame_index"] == 0
    with pytest.raises(InputError, match="160x32, but the frames before it are 96x64"):
        session.step(torch.zeros(3, 160, 32, dtype=torch.uint8))
    with pytest.raises(InputError, match="eval mode"):
        build().train().new_session()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_clips_of_another_length_are_refused(model: MRCFA, count: int) -> None:
    with pytest.raises(InputError, match=f"1 or 4 frames .*got {count}"):
        model.predict_clip(video(count))


def test_smallest_sizes_work(model: MRCFA) -> None:
    for size in ((96, 64), (160, 32), (32, 160)):
        clip = torch.randint(0, 256, (4, 3, *size), dtype=torch.uint8)
        assert model.predict_clip(clip).shape == (1, 5, size[0] // 4, size[1] // 4)


@pytest.mark.parametrize("window", [(-2, 0), (-6, -4, -3, -2, -1, 0)])
def test_other_windows(window: tuple[int, ...]) -> None:
    model = build(window=window)
    frames = video(9)
    answers = [answer["sem_seg"] for answer in model.new_session().run(frames)]
    reach = -window[0]
    for index in range(len(frames)):
        clip = [index + offset for offset in window] if index >= reach else [index]
        expected = resize_scores(model.predict_clip(frames[clip]), (64, 96))[0]
        assert (answers[index] - expected).abs().max() <= 1e-5 * expected.abs().max()
    names = {name for name, _ in model.decode_head.named_children() if name.startswith("deco")}
    assert names == {f"deco{j}" for j in range(1, len(window) + 1)}


def test_a_start_table_of_ones_own() -> None:
    model = build(window=(-2, -1, 0), start_table={1: (0, 0, 1)})
    frames = video(3)
    answers = [answer["sem_seg"] for answer in model.new_session().run(frames)]
    expected = resize_scores(model.predict_clip(frames[[0, 0, 1]]), (64, 96))[0]
    assert (answers[1] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_bad_windows_are_named() -> None:
    with pytest.raises(InputError, match="at least one reference"):
        build(window=(0,))
    with pytest.raises(InputError, match="must ascend"):
        build(window=(-3, -6, 0))
    with pytest.raises(InputError, match=r"start_table\[2\] must have 1 or 3 frames"):
        build(window=(-2, -1, 0), start_table={2: (0, 2)})


def new_session() -> Any:
    return build().new_session()


def test_saved_state_goes_on_in_another_process(frames: torch.Tensor, tmp_path: Path) -> None:
    assert_goes_on_elsewhere(new_session, frames[:13], 10, tmp_path)


@pytest.mark.skipif(not STATM.exists(), reason="the system does not tell the memory in use")
@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.soak)])
def test_memory_stays_flat(model: MRCFA, count: int) -> None:
    assert memory_growth(model.new_session(), count, (128, 192)) < 10
