"""Prototypes that grow with the stream: causal, bounded, continued, as good as offline ones."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from cffm_cases import clip_of, samples_of, tiny_model

from vss2.errors import InputError, InputFileError
from vss2.projects.cffm.kmeans import assign, kmeans, random_points
from vss2.projects.cffm.online import OnlinePrototypes, refine
from vss2.testing.saved_session import assert_goes_on_elsewhere

VIDEO = clip_of(0, 64, 96, frames=14)
TOKENS = 8 * 12  # of a frame, fewer than the 100 clusters


def clusters_of_noise(frames: int, seed: int) -> torch.Tensor:
    """[T, 60, 8]: six blobs; each frame sees three of them, from frame 5 on other ones."""
    generator = torch.Generator().manual_seed(seed)
    blobs = 10 * torch.randn(6, 8, generator=generator)
    seen = [blobs[:3] if t < 5 else blobs[3:] for t in range(frames)]
    noise = torch.randn(frames, 60, 8, generator=generator)
    return torch.stack([blob.repeat(20, 1) for blob in seen]) + noise


def inertia(tokens: torch.Tensor, centers: torch.Tensor) -> float:
    return float((tokens - centers[assign(tokens, centers)]).square().sum(1).mean())


def stream(frames: torch.Tensor, **options: Any) -> tuple[OnlinePrototypes, list[torch.Tensor]]:
    prototypes = OnlinePrototypes(**options)
    return prototypes, [prototypes.update(tokens) for tokens in frames]


def test_fewer_tokens_than_clusters_are_the_prototypes_themselves() -> None:
    frames = torch.randn(4, 9, 5, generator=torch.Generator().manual_seed(0))
    _, centers = stream(frames, clusters=30, capacity=40)
    assert [len(c) for c in centers] == [9, 18, 27, 30]
    for count in (1, 2, 3):
        tokens = frames[:count].flatten(0, 1)
        assert inertia(tokens, centers[count - 1]) < 1e-6 * tokens.square().mean()
    _, one = stream(torch.randn(3, 1, 5), clusters=1, capacity=1)
    assert [len(c) for c in one] == [1, 1, 1]
    _, same = stream(torch.ones(3, 20, 5), clusters=4, capacity=30)
    assert torch.equal(same[-1], torch.ones(4, 5))


def test_what_is_held_is_bounded_and_a_uniform_sample() -> None:
    marked = torch.arange(80.0).repeat_interleave(50).reshape(80, 50, 1)
    prototypes, _ = stream(marked, clusters=5, capacity=400)
    state = prototypes.state_dict()
    assert state["tokens"].shape == (400, 1)
    assert state["tokens"].untyped_storage().nbytes() == 400 * 4
    assert state["ranks"].shape == (400,)
    # Mean 39.5 and deviation 23.1 of the marks: 4 standard errors.
    assert abs(state["tokens"].mean() - 39.5) < 4 * 23.1 / 400**0.5
    assert len(state["tokens"].unique()) > 70


@pytest.mark.parametrize("capacity", [240, 720])
def test_inertia_is_close_to_offline_clustering_though_the_scene_changes(capacity: int) -> None:
    ratios = []
    for seed in range(3):
        frames = clusters_of_noise(12, seed)
        tokens = frames.flatten(0, 1)
        offline = kmeans(tokens, random_points(tokens, 12, seed, "video"))
        _, online = stream(frames, clusters=12, capacity=capacity, seed=seed)
        ratios.append(inertia(tokens, online[-1]) / inertia(tokens, offline))
    assert sum(ratios) / 3 < 1.1


def test_moving_centers_leave_useless_places() -> None:
    tokens = clusters_of_noise(12, 0).flatten(0, 1)
    start = tokens[:6].clone()  # two for each of the first three blobs, none for the others
    still, moving = start, start
    for _ in range(10):
        still, moving = refine(tokens, still, 0), refine(tokens, moving, 3)
    assert inertia(tokens, refine(tokens, moving, 0)) < 0.5 * inertia(tokens, still)
    nowhere = torch.cat((start, torch.full((1, 8), 1e3)))
    assert torch.equal(refine(tokens, nowhere, 0)[-1], nowhere[-1])
    assert refine(tokens, nowhere, 1)[-1].abs().max() < 100


def test_prototypes_depend_on_no_later_frame() -> None:
    model = tiny_model(plus_plus=True)
    other = VIDEO.clone()
    other[9:] = VIDEO[9:].flip(-1)
    a, b = (
        [answer["sem_seg"] for answer in model.new_session(prototypes="online").run(v)]
        for v in (VIDEO, other)
    )
    for index in range(9):
        assert torch.equal(a[index], b[index])
    assert not torch.equal(a[9], b[9])
    # Frames encoded together see only what came before them.
    together = model.new_session(prototypes="online").run(VIDEO, batch=5)
    for answer, expected in zip(together, a, strict=True):
        assert (answer["sem_seg"] - expected).abs().max() < 1e-3 * expected.abs().max()


def test_answers_are_those_with_the_prototypes_so_far() -> None:
    model = tiny_model(plus_plus=True, prototypes="online")
    session = model.new_session()
    assert not session.window_only
    prototypes = OnlinePrototypes()
    for index, frame in enumerate(VIDEO):
        answer = session.step(frame)["sem_seg"]
        features = model.encode(model.normalize(frame[None]))
        tokens = features["stride8"][0].flatten(1).T
        assert len(tokens) == TOKENS
        centers = prototypes.update(tokens)
        if index > 2:
            clip = VIDEO[list(model.window.clip(index).frames)]
            scores = model.predict_clip(clip, prototypes=centers)
            expected = torch.nn.functional.interpolate(scores, (64, 96), mode="bilinear")[0]
            assert (answer - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert session.state_dict()["prototypes"]["tokens"].shape == (14 * TOKENS, 16)
    session.reset()
    assert session.state_dict()["prototypes"]["tokens"] is None


def test_saved_state_goes_on_bit_for_bit() -> None:
    model = tiny_model(plus_plus=True, prototypes="online")
    whole = [answer["sem_seg"] for answer in model.new_session().run(VIDEO)]
    session = model.new_session()
    for frame in VIDEO[:7]:
        session.step(frame)
    memory = io.BytesIO()
    torch.save(session.state_dict(), memory)
    memory.seek(0)
    here = model.new_session()
    here.load_state_dict(torch.load(memory, weights_only=True))
    for index in range(7, 14):
        assert torch.equal(here.step(VIDEO[index])["sem_seg"], whole[index])


def new_session() -> Any:
    return tiny_model(plus_plus=True, prototypes="online").new_session()


def test_saved_state_goes_on_in_another_process(tmp_path: Path) -> None:
    assert_goes_on_elsewhere(new_session, VIDEO[:10], 7, tmp_path)


def test_a_state_of_the_other_kind_is_refused() -> None:
    model = tiny_model(plus_plus=True)
    online = model.new_session(prototypes="online")
    given = model.new_session(prototypes=torch.zeros(3, 16))
    with pytest.raises(InputError, match="not of a session with online"):
        online.load_state_dict(given.state_dict())
    with pytest.raises(InputError, match="not of a session with the prototypes of a whole"):
        given.load_state_dict(online.state_dict())


def test_evaluation_and_default_sessions_follow_the_model() -> None:
    model = tiny_model(plus_plus=True, prototypes="online", eval_output="sem_seg")
    items = [
        {
            "frame": frame,
            "video_id": "v",
            "frame_index": index,
            "first_frame": index == 0,
            "last_frame": index == 4,
            "height": 64,
            "width": 96,
        }
        for index, frame in enumerate(VIDEO[:5])
    ]
    expected = tiny_model(plus_plus=True).new_session(prototypes="online").run(VIDEO[:5])
    for answer, other in zip(model(items), expected, strict=True):
        assert torch.equal(answer["sem_seg"], other["sem_seg"])
    (sample,) = samples_of([clip_of(0, 64, 64)])
    sample["sem_seg"] %= 5
    with pytest.raises(InputError, match=r"online is for streaming.*vss2 cffm prototypes"):
        model.train()([sample | {"video_id": "v"}])


def test_a_default_session_takes_the_only_video_of_the_store(tmp_path: Path) -> None:
    for name in ("1_a", "2_b"):
        (tmp_path / name).mkdir()
        torch.save(torch.randn(1, 7, 16), tmp_path / name / "centers.pt")
    stored = torch.load(tmp_path / "1_a" / "centers.pt")[0]
    given = tiny_model(plus_plus=True).new_session(prototypes=stored)
    expected = list(given.run(VIDEO[:4]))[-1]["sem_seg"]
    model = tiny_model(plus_plus=True, prototypes=str(tmp_path / "1_a"))
    assert torch.equal(list(model.new_session().run(VIDEO[:4]))[-1]["sem_seg"], expected)

    several = tiny_model(plus_plus=True, prototypes=str(tmp_path))
    with pytest.raises(InputError, match=r"prototypes of 2 videos .* or to online"):
        several.new_session()
    (tmp_path / "2_b" / "centers.pt").unlink()
    (tmp_path / "2_b").rmdir()
    assert torch.equal(list(several.new_session().run(VIDEO[:4]))[-1]["sem_seg"], expected)
    with pytest.raises(InputFileError, match=r"do not exist.*model.prototypes=online"):
        tiny_model(plus_plus=True, prototypes=str(tmp_path / "none")).new_session()
