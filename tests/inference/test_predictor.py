from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from torch import nn

from vss2.errors import InputError
from vss2.inference import VideoPredictor


class LaggingSession:
    """Answers each frame `lag` steps later with labels that tell its brightness."""

    def __init__(self, lag: int):
        self.lag, self.waiting, self.index = lag, [], 0
        self.inputs: list[torch.Tensor] = []

    def step(self, frame, output_size=None, labels_only=False):
        assert frame.dtype == torch.uint8
        assert labels_only
        assert torch.is_inference_mode_enabled()
        self.inputs.append(frame)
        labels = torch.full(output_size, int(frame[0, 0, 0]), dtype=torch.uint8)
        self.waiting.append({"labels": labels, "frame_index": self.index})
        self.index += 1
        return self.waiting.pop(0) if len(self.waiting) > self.lag else None

    def finish(self):
        while self.waiting:
            yield self.waiting.pop(0)


class Model(nn.Module):
    device = torch.device("cpu")

    def __init__(self, lag: int = 0):
        super().__init__()
        self.lag, self.sessions = lag, []

    def new_session(self):
        self.sessions.append(LaggingSession(self.lag))
        return self.sessions[-1]


def _source(count: int, size=(6, 8)):
    for k in range(count):
        yield f"f{k}", np.full((*size, 3), k, np.uint8)


@pytest.mark.parametrize("lag", [0, 1, 5, 40])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_as_many_outputs_as_inputs_in_order(lag, count):
    results = list(VideoPredictor(Model(lag))(_source(count)))
    assert [r.name for r in results] == [f"f{k}" for k in range(count)]
    for k, result in enumerate(results):
        assert result.labels.dtype == np.uint8
        assert result.labels.shape == (6, 8)
        assert (result.labels == k).all()
        assert (result.frame == k).all()


def test_model_sees_the_resized_frame_and_labels_have_the_frames_size():
    model = Model(lag=2)
    predictor = VideoPredictor(model, resize=lambda image: image.repeat(2, 0).repeat(3, 1))
    results = list(predictor(_source(4)))
    assert {tuple(x.shape) for x in model.sessions[0].inputs} == {(3, 12, 24)}
    assert {r.labels.shape for r in results} == {(6, 8)}


def test_each_video_has_its_own_session_and_the_model_is_in_eval_mode():
    model = Model().train()
    predictor = VideoPredictor(model)
    for _ in range(2):
        list(predictor(_source(2)))
    assert len(model.sessions) == 2
    assert not model.training


@pytest.mark.parametrize("lag", [0, 3])
def test_only_frames_without_an_answer_are_in_memory(lag):
    alive: list[weakref.ref] = []

    def source():
        for k in range(20):
            frame = np.full((6, 8, 3), k, np.uint8)
            alive.append(weakref.ref(frame))
            yield f"f{k}", frame

    most = 0
    for _ in VideoPredictor(Model(lag), resize=np.copy)(source()):
        most = max(most, sum(ref() is not None for ref in alive))
    assert most <= lag + 2


def test_a_frame_of_another_size_is_named():
    frames = [("a", np.zeros((6, 8, 3), np.uint8)), ("b", np.zeros((8, 6, 3), np.uint8))]
    with pytest.raises(InputError, match="Frame b is 8x6, the first one is 6x8"):
        list(VideoPredictor(Model())(frames))


def test_answers_out_of_order_are_a_defect():
    model = Model(lag=1)
    model.new_session = lambda: session
    session = LaggingSession(1)
    session.index = 5
    with pytest.raises(RuntimeError, match="answered frame 5 where 0 was due"):
        list(VideoPredictor(model)(_source(3)))


def test_missing_answers_are_a_defect():
    model, session = Model(lag=1), LaggingSession(1)
    session.finish = lambda: iter(())
    model.new_session = lambda: session
    with pytest.raises(RuntimeError, match="left 1 frames"):
        list(VideoPredictor(model)(_source(3)))
