from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vss2.errors import InputError
from vss2.modeling.losses import resize_scores
from vss2.modeling.window import PUBLISHED_START_TABLE, BlockWindow, OffsetWindow, WindowRule

from .tiny import TinySegmentor, random_frames

WINDOWS: dict[str, WindowRule] = {
    "single": OffsetWindow((0,)),
    "published": OffsetWindow((-9, -6, -3, 0), PUBLISHED_START_TABLE),
    "block2": BlockWindow(2),
    "block4": BlockWindow(4),
}


def window_at_once(model: TinySegmentor, frames: torch.Tensor) -> list[torch.Tensor]:
    """Every frame's scores from its whole clip, without cache."""
    out = []
    for index in range(len(frames)):
        clip = model.window.clip(index, len(frames))
        features = [model.keep(model.encode(model.normalize(frames[f][None]))) for f in clip.frames]
        scores = model.decode(features, [clip.frames.index(index)])
        out.append(resize_scores(scores, tuple(frames.shape[-2:]))[0])
    return out


def run_steps(session, frames: torch.Tensor, **options) -> list[dict]:
    answers = [session.step(frame, **options) for frame in frames]
    return [a for a in answers if a is not None] + list(session.finish())


@pytest.mark.parametrize("name", list(WINDOWS))
@pytest.mark.parametrize("count", [1, 2, 7, 14, 25])
@torch.no_grad()
def test_session_equals_the_window_at_once_and_encodes_once(name: str, count: int) -> None:
    model = TinySegmentor(WINDOWS[name]).eval()
    frames = random_frames(count)
    expected = window_at_once(model, frames)
    model.encoded = 0
    answers = run_steps(model.new_session(), frames)
    assert model.encoded == count
    assert [a["frame_index"] for a in answers] == list(range(count))
    for answer, scores in zip(answers, expected, strict=True):
        torch.testing.assert_close(answer["sem_seg"], scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", list(WINDOWS))
def test_lag_is_what_the_session_says(name: str) -> None:
    model = TinySegmentor(WINDOWS[name]).eval()
    session = model.new_session()
    frames = random_frames(20)
    for index, frame in enumerate(frames):
        answer = session.step(frame, labels_only=True)
        if index < session.lag:
            assert answer is None
        else:
            assert answer["frame_index"] == index - session.lag
    assert len(list(session.finish())) == min(session.lag, 20)


@pytest.mark.parametrize("name", list(WINDOWS))
def test_memory_is_bounded_by_window_and_lag(name: str) -> None:
    model = TinySegmentor(WINDOWS[name]).eval()
    session = model.new_session()
    bound = model.window.lookback + model.window.lag + 1
    for frame in random_frames(60):
        session.step(frame, labels_only=True)
        state = session.state_dict()
        assert len(state["kept"]) <= bound
        assert len(state["scores"]) <= max(1, model.window.lag)


def test_block_clips_are_decoded_once() -> None:
    model = TinySegmentor(BlockWindow(2)).eval()
    run_steps(model.new_session(), random_frames(12))
    assert model.decoded == 6


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_run_equals_steps_for_any_batch(batch: int) -> None:
    model = TinySegmentor(WINDOWS["published"]).eval()
    frames = random_frames(17)
    steps = run_steps(model.new_session(), frames)
    batched = list(model.new_session().run(iter(frames), batch=batch))
    for one, other in zip(steps, batched, strict=True):
        assert one["frame_index"] == other["frame_index"]
        torch.testing.assert_close(one["sem_seg"], other["sem_seg"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["published", "block2"])
@pytest.mark.parametrize("cut", [0, 1, 4, 11])
def test_state_goes_on_in_another_session(name: str, cut: int) -> None:
    model = TinySegmentor(WINDOWS[name]).eval()
    frames = random_frames(15)
    whole = run_steps(model.new_session(), frames)
    first, second = model.new_session(), model.new_session()
    answers = [a for frame in frames[:cut] if (a := first.step(frame)) is not None]
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    answers += run_steps(second, frames[cut:])
    for one, other in zip(whole, answers, strict=True):
        assert one["frame_index"] == other["frame_index"]
        assert torch.equal(one["sem_seg"], other["sem_seg"])


def test_state_goes_on_in_another_process(tmp_path: Path) -> None:
    model = TinySegmentor(WINDOWS["published"]).eval()
    frames = random_frames(14)
    whole = run_steps(model.new_session(), frames)
    session = model.new_session()
    for frame in frames[:10]:
        session.step(frame)
    torch.save({"state": session.state_dict(), "frames": frames[10:]}, tmp_path / "half.pt")
    script = """
import sys, torch
from tests.modeling.test_session import WINDOWS, run_steps
from tests.modeling.tiny import TinySegmentor
half = torch.load(sys.argv[1], weights_only=True)
session = TinySegmentor(WINDOWS["published"]).eval().new_session()
session.load_state_dict(half["state"])
torch.save([a["sem_seg"] for a in run_steps(session, half["frames"])], sys.argv[2])
"""
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "half.pt"), str(tmp_path / "rest.pt")],
        check=True,
        cwd=Path(__file__).parents[2],
    )
    rest = torch.load(tmp_path / "rest.pt", weights_only=True)
    for answer, scores in zip(whole[10:], rest, strict=True):
        torch.testing.assert_close(answer["sem_seg"], scores, rtol=0, atol=1e-5)


def test_answers_that_nobody_needs_are_not_decoded() -> None:
    model = TinySegmentor(WINDOWS["published"]).eval()
    frames = random_frames(12)
    whole = run_steps(model.new_session(), frames)
    model.decoded = 0
    session = model.new_session()
    for frame in frames[:11]:
        assert session.step(frame, need_output=False) is None
    answer = session.step(frames[11])
    assert model.decoded == 1
    assert torch.equal(answer["sem_seg"], whole[11]["sem_seg"])


def test_output_size_and_labels() -> None:
    model = TinySegmentor(WINDOWS["single"]).eval()
    frame = random_frames(1)[0]
    scores = model.new_session().step(frame, output_size=(51, 33))["sem_seg"]
    labels = model.new_session().step(frame, output_size=(51, 33), labels_only=True)["labels"]
    assert scores.shape == (3, 51, 33)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, scores.argmax(0).to(torch.uint8))


def test_bad_frames_and_misuse_are_named() -> None:
    model = TinySegmentor(WINDOWS["published"])
    with pytest.raises(InputError, match="eval mode"):
        model.train().new_session()
    session = model.eval().new_session()
    frame = random_frames(1)[0]
    with pytest.raises(InputError, match=r"torch\.float32"):
        session.step(frame.float())
    with pytest.raises(InputError, match=r"\(32, 40, 3\)"):
        session.step(frame.permute(1, 2, 0))
    with pytest.raises(InputError, match="at least 32 pixels"):
        session.step(frame[:, :16])
    with pytest.raises(InputError, match="mask propagation"):
        session.step(frame, mask=frame[0])
    session.step(frame)
    with pytest.raises(InputError, match="32x48, but the frames before it are 32x40"):
        session.step(random_frames(1, 32, 48)[0])
    list(session.finish())
    with pytest.raises(InputError, match="finished"):
        session.step(frame)
    session.reset()
    assert session.step(frame)["frame_index"] == 0
