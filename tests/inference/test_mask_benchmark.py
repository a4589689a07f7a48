"""`vss2 bench` of models that propagate masks: a first mask is made up."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import vss2
from tests.inference.tiny_propagator import TinyPropagator
from vss2.cli import benchmark as tool
from vss2.errors import InputError
from vss2.inference import benchmark


@pytest.mark.parametrize(("objects", "size"), [(1, (30, 40)), (3, (12, 9)), (5, (31, 17))])
def test_made_up_masks_hold_each_object(objects, size):
    mask = benchmark.made_up_mask(objects, *size)
    assert mask.shape == size
    assert mask.dtype == np.uint8
    assert np.unique(mask).tolist() == list(range(objects + 1))


def test_objects_must_fit():
    with pytest.raises(InputError, match="9 objects do not fit into a mask of 8x40"):
        benchmark.made_up_mask(9, 8, 40)


def test_report_of_mask_propagation(monkeypatch, capsys):
    model = TinyPropagator()
    model.cfg = OmegaConf.create({})
    monkeypatch.setattr(vss2, "load", lambda *args, **kwargs: model)
    words = ["--config-file", "x", "--size", "24", "32", "--frames", "4", "--warmup", "1"]
    assert tool.main([*words, "--objects", "3", "--json", "-"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["objects"] == 3
    assert set(run["stage_share"]) == set(benchmark.PROPAGATION_STAGES)
    assert run["stage_share"]["resize"] > 0
    (session,) = model.sessions
    assert session.object_ids == [1, 2, 3]
    assert torch.equal(session.maps.amax((1, 2)), torch.ones(3))
    assert tool.main([*words, "--objects", "3"]) == 0
    assert "labels, 3 objects)" in capsys.readouterr().out
    assert tool.main([*words, "--objects", "0"]) == 2
