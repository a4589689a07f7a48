"""Frames per second as mask propagation publishes them: the model alone, masks on the host."""

from __future__ import annotations

import torch
from torch import nn

from vss2.engine import evaluate


class Model(nn.Module):
    """Each call takes three seconds of a clock that is turned by hand."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def forward(self, batch):
        self.clock[0] += 3.0
        return [{"mask": torch.zeros(2, 2), "object_ids": [1], "sem_seg": None} for _ in batch]


def test_only_the_model_is_timed(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(evaluate.time, "perf_counter", lambda: clock[0])
    model = Model(clock)
    with evaluate._forward_clock(model) as watch:
        for _ in range(4):
            answers = model([1, 2])
            clock[0] += 100.0  # reading and scoring
    assert watch.seconds == 12.0
    assert [sorted(answer) for answer in answers] == [["mask", "object_ids", "sem_seg"]] * 2
    model([1])
    assert watch.seconds == 12.0
