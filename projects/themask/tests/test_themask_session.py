"""Streaming of THE-Mask: equal to its clips at once, each frame encoded once, small state."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from themask_cases import NUM_CLASSES, frames_of, stage1, stage2

from vss2.modeling.losses import resize_scores
from vss2.testing.memory import STATM, memory_growth

MODELS = {
    "stage1_pairs": lambda: stage1(clip_length=2),
    "pairs": stage2,
    "fours": lambda: stage2(clip_length=4),
    "causal_fours": lambda: stage2(clip_length=4, causal=True),
}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return frames_of(14, height=40, width=48)


def at_once(model: Any, frames: torch.Tensor) -> torch.Tensor:
    """Scores [T, K, H, W] of a whole video, clip by clip."""
    found: dict[int, torch.Tensor] = {}
    for index in range(len(frames)):
        clip = model.window.clip(index, len(frames))
        if index not in found:
            scores = model.predict_clip(frames[list(clip.frames)])
            # A causal clip answers its last frame; predict_clip takes it as the target alone too.
            targets = clip.frames[-len(scores) :]
            found.update(zip(targets, scores, strict=True))
    scores = torch.stack([found[index] for index in range(len(frames))])
    return resize_scores(scores, frames.shape[-2:])


def test_answers_are_those_of_the_clips_at_once(model: Any, frames: torch.Tensor) -> None:
    answers = list(model.new_session().run(frames, batch=3))
    assert [answer["frame_index"] for answer in answers] == list(range(14))
    for answer, expected in zip(answers, at_once(model, frames), strict=True):
        torch.testing.assert_close(answer["sem_seg"], expected, rtol=0, atol=5e-5)


def test_frames_are_encoded_and_looked_at_once(
    model: Any, frames: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"backbone": 0, "pixel_decoder": 0, "look": 0}

    def count(name: str, owner: Any, method: str) -> None:
        original = getattr(owner, method)

        def counted(x: Any, *args: Any) -> Any:
            first = next(iter(x.values())) if isinstance(x, dict) else x
            counts[name] += len(first if isinstance(first, torch.Tensor) else first[0])
            return original(x, *args)

        monkeypatch.setattr(owner, method, counted)

    head = model.decode_head
    count("backbone", model.backbone, "forward")
    count("pixel_decoder", head.pixel_decoder, "forward")
    if hasattr(head.predictor, "look"):
        count("look", head.predictor, "look")
    else:
        counts["look"] = len(frames)
    for _ in model.new_session().run(frames, labels_only=True):
        pass
    assert counts == dict.fromkeys(counts, len(frames))


def test_heads_that_nobody_asks_for_do_not_run(
    model: Any, frames: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = model.decode_head.predictor
    calls: list[str] = []
    heads = [name for name, _ in predictor.named_children() if name.endswith(("_embed", "_aux"))]
    for name in heads:
        layer = predictor.get_submodule(name)
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    model.predict_clip(frames[:1])
    layers = len(predictor.transformer_ffn_layers)
    expected = {"class_embed": 1, "mask_embed": layers + 1}
    if "mask_embed_aux" in heads:
        expected |= {"class_embed_aux": 1, "mask_embed_aux": 1}
    assert {name: calls.count(name) for name in set(calls)} == expected
    for name in heads:
        predictor.get_submodule(name)._forward_hooks.clear()


def test_one_clip_and_a_short_video(model: Any) -> None:
    for count in (1, 2, 5):
        frames = frames_of(count, seed=7, height=40, width=48)
        answers = list(model.new_session().run(frames))
        assert len(answers) == count
        expected = at_once(model, frames)
        for answer, scores in zip(answers, expected, strict=True):
            torch.testing.assert_close(answer["sem_seg"], scores, rtol=0, atol=5e-5)


def test_labels_are_the_best_class_of_the_scores(model: Any, frames: torch.Tensor) -> None:
    size = (41, 60)
    scores = [a["sem_seg"] for a in model.new_session().run(frames, output_size=size)]
    labels = model.new_session().run(frames, output_size=size, labels_only=True)
    for score, answer in zip(scores, labels, strict=True):
        assert score.shape == (NUM_CLASSES, *size)
        assert torch.equal(answer["labels"], score.argmax(0).to(torch.uint8))


@pytest.mark.parametrize("cut", [1, 7])
def test_saved_state_goes_on_elsewhere(model: Any, frames: torch.Tensor, cut: int) -> None:
    whole = list(model.new_session().run(frames))
    first, second = model.new_session(), model.new_session()
    answers = [a for frame in frames[:cut] if (a := first.step(frame)) is not None]
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    answers += [a for frame in frames[cut:] if (a := second.step(frame)) is not None]
    answers += list(second.finish())
    for answer, expected in zip(answers, whole, strict=True):
        assert answer["frame_index"] == expected["frame_index"]
        torch.testing.assert_close(answer["sem_seg"], expected["sem_seg"], rtol=0, atol=5e-5)


def test_features_go_when_their_clip_is_answered(frames: torch.Tensor) -> None:
    session = stage2().new_session()
    held = []
    for frame in frames[:12]:
        session.step(frame, labels_only=True)
        held.append(len(session.state_dict()["kept"]))
    # Frame 5 completes a block: the clip (0, 3) is answered and forgotten; frames 6 and 7 do the
    # same for (1, 4) and (2, 5).
    assert held == [1, 2, 3, 4, 5, 4, 3, 2, 3, 4, 5, 4]


def test_causal_sessions_answer_every_frame_at_once(frames: torch.Tensor) -> None:
    model = stage2(clip_length=4, causal=True)
    assert [model.window.clip(i).frames for i in (0, 2, 3, 5, 7, 9, 11)] == [
        (0,),
        (2,),
        (0, 3),
        (2, 5),
        (1, 4, 7),
        (0, 3, 6, 9),
        (2, 5, 8, 11),
    ]
    session = model.new_session()
    for index, frame in enumerate(frames[:5]):
        assert session.step(frame, labels_only=True)["frame_index"] == index
    pairs = stage2(causal=True)
    assert (pairs.window.lag, pairs.window.lookback) == (0, 3)
    assert len(pairs.predict_clip(frames[[0, 3]])) == 1
    whole = stage2().predict_clip(frames[[0, 3]])
    torch.testing.assert_close(pairs.predict_clip(frames[[0, 3]]), whole[1:], rtol=0, atol=5e-5)


def test_sizes_that_no_stride_divides_work() -> None:
    model = stage2()
    for size in ((33, 40), (45, 71), (50, 33)):
        frames = frames_of(2, seed=1, height=size[0], width=size[1])
        assert model.predict_clip(frames).shape[-2:] == tuple(-(-side // 4) for side in size)
        for answer in model.new_session().run(frames):
            assert answer["sem_seg"].shape == (NUM_CLASSES, *size)
            assert answer["sem_seg"].isfinite().all()


def test_the_published_softmax_is_a_switch(frames: torch.Tensor) -> None:
    plain, published = stage2(), stage2(softmax_scores=True)
    scores = [answer["sem_seg"] for answer in plain.new_session().run(frames[:3])]
    shares = [answer["sem_seg"] for answer in published.new_session().run(frames[:3])]
    labels = [a["labels"] for a in published.new_session().run(frames[:3], labels_only=True)]
    for score, share, label in zip(scores, shares, labels, strict=True):
        torch.testing.assert_close(share, score.softmax(0))
        best = score.topk(2, dim=0)
        clear = best.values[0] - best.values[1] > 1e-4
        assert torch.equal(label[clear], best.indices[0][clear].byte())


@pytest.mark.soak
@pytest.mark.skipif(not STATM.exists(), reason="the system does not tell the memory in use")
@pytest.mark.parametrize("causal", [False, True])
def test_memory_stays_flat(causal: bool) -> None:
    session = stage2(causal=causal).new_session()
    assert memory_growth(session, 300, (128, 192), every=1) < 10
