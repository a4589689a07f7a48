"""Label propagation against the published maps, frame by frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sfc_cases import published_model

from vss2.testing.fixtures import image_clip, load_fixture

DESCRIPTION, ARRAYS = load_fixture("sfc_labelprop")
CASES = DESCRIPTION["config"]["cases"]


def options(case: dict[str, Any]) -> dict[str, Any]:
    return {
        "context": case["videoLen"],
        "radius": case["radius"],
        "top_k": case["topk"],
        "temperature": case["temperature"],
        "norm_mask": case.get("norm_mask", False),
    }


@pytest.mark.parametrize("name", list(CASES))
def test_soft_and_hard_labels(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    variants = [case[k] for k in ("fc_model", "semantic_model") if k in case]
    model = published_model(tmp_path, *variants, bn_warmup=case.get("bn_warmup", True))
    session = model.new_session(**options(case))
    count, height, width, seed = DESCRIPTION["input"]["image_clip"]
    frames = torch.from_numpy(image_clip(count, height, width, seed)).permute(0, 3, 1, 2)
    mask = torch.from_numpy(ARRAYS["mask0"])
    wrong = 0
    for index, frame in enumerate(frames):
        shown: list[torch.Tensor] = []
        session._scores = _recording(session._scores, shown)  # type: ignore[method-assign]
        answer = session.step(frame, mask=mask if index == 0 else None, labels_only=True)
        del session._scores
        soft = shown[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(soft, ARRAYS[f"{name}_soft"][index], atol=1e-4, rtol=0)
        wrong += int((answer["mask"].numpy() != ARRAYS[f"{name}_labels"][index]).sum())
    assert wrong <= 0.0005 * ARRAYS[f"{name}_labels"].size
    if f"{name}_topk_index" in ARRAYS:
        assert_matches(session, model, frames, name)


def _recording(scores: Any, shown: list[torch.Tensor]) -> Any:
    def record(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        shown.append(maps)
        return scores(maps, size)

    return record


def assert_matches(session: Any, model: Any, frames: torch.Tensor, name: str) -> None:
    """The chosen keys and weights of target frame 8."""
    from vss2.layers.local_correlation import local_correlation

    context, mask = session.context, torch.from_numpy(ARRAYS["mask0"])
    session.reset()
    for index in range(8):
        session.step(frames[index], mask=mask if index == 0 else None)
    with torch.no_grad():
        features = model.encode(model.normalize(frames[8][None]))
    memory = session._context()
    assert len(memory.labels) == 1 + context
    found = local_correlation(features[0], memory.maps, memory.radii, memory.top_k, memory.repeats)
    weights = (found.values / memory.temperature).softmax(1).T.numpy()
    np.testing.assert_allclose(weights, ARRAYS[f"{name}_topk_weight"], atol=1e-4, rtol=0)
    assert (found.keys.T.numpy() == ARRAYS[f"{name}_topk_index"]).mean() > 0.995


def test_the_first_mask_is_resized_as_published(tmp_path: Path) -> None:
    model = published_model(tmp_path, "fine-grained")
    session = model.new_session()
    frame = torch.zeros(3, 96, 136, dtype=torch.uint8)
    session.step(frame, mask=torch.from_numpy(ARRAYS["mask0"]))
    labels = session._entries[0].labels.permute(1, 2, 0).numpy()
    np.testing.assert_allclose(labels, ARRAYS["lbl0_resized"], atol=1e-6, rtol=0)
